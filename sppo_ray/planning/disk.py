"""Bytes that a run writes: checkpoints and export."""

from __future__ import annotations

from sppo_ray.config import ModelSettings, RunConfig
from sppo_ray.planning.lora import trained_parameters
from sppo_ray.planning.memory import DTYPE_BYTES, checkpoint_bytes
from sppo_ray.planning.models import Models
from sppo_ray.planning.shapes import ModelShape


def disk_bytes(config: RunConfig, models: Models) -> int:
    """Return the bytes of `checkpoint.keep` checkpoints, one that is being written, and the
    export.
    """
    export = models.policy.parameters * DTYPE_BYTES[config.learner.dtype]
    if models.critic is not None:
        export += models.critic.critic_parameters * DTYPE_BYTES[config.critic.dtype]
    kept = one_checkpoint(config, models) * (config.checkpoint.keep + 1)
    return kept + export * config.checkpoint.export


def one_checkpoint(config: RunConfig, models: Models) -> int:
    """Return the bytes of a checkpoint of policy and critic."""
    roles: list[tuple[ModelSettings, ModelShape, bool]] = [(config.learner, models.policy, False)]
    if models.critic is not None:
        roles.append((config.critic, models.critic, True))
    return sum(
        checkpoint_bytes(
            trained_parameters(settings.lora, shape, is_critic=is_critic),
            DTYPE_BYTES[settings.dtype],
            effective_stage(settings),
        )
        for settings, shape, is_critic in roles
    )


def effective_stage(settings: ModelSettings) -> int:
    """As `actors/deepspeed.py`: bfloat16 at stage 0 is stage 2."""
    return settings.zero_stage or 2 if settings.dtype == "bfloat16" else settings.zero_stage
