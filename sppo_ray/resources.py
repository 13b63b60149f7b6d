"""What a run needs of a cluster, and whether that can ever fit. Pure: the live figures are handed in."""

from __future__ import annotations

from dataclasses import dataclass

from sppo_ray.config import RunConfig
from sppo_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class Resources:
    """Logical resources of a cluster."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one actor needs, and its place in the placement group."""

    role: str
    cpus: float
    gpus: float

    def as_ray(self) -> dict[str, float]:
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def bundles_of(config: RunConfig) -> list[Bundle]:
    """One bundle an actor, in a fixed order: rollout-*, learner-*, critic-*, reward."""
    rollout, learner, critic = config.rollout, config.learner, config.critic
    return [
        *(Bundle(f"rollout-{i}", rollout.cpus_per_worker, rollout.gpus_per_worker) for i in range(rollout.workers)),
        *(Bundle(f"learner-{i}", learner.cpus_per_rank, learner.gpus_per_rank) for i in range(learner.ranks)),
        *(Bundle(f"critic-{i}", critic.cpus_per_rank, critic.gpus_per_rank) for i in range(critic.ranks)),
        Bundle("reward", config.reward.cpus, 0.0),
    ]


def require_feasible(config: RunConfig, total: Resources) -> None:
    """Refuse what can never be placed, before any actor exists. Raises UserError with the sum and the way out."""
    bundles = bundles_of(config)
    cpus, gpus = sum(b.cpus for b in bundles), sum(b.gpus for b in bundles)
    wanted = ", ".join(f"{b.role} {b.cpus:g} CPU" + (f" + {b.gpus:g} GPU" if b.gpus else "") for b in bundles)
    for name, need, have in (("CPUs", cpus, total.cpus), ("GPUs", gpus, total.gpus)):
        if need > have + 1e-9:
            raise UserError(
                f"this run needs {need:g} logical {name}, the Ray cluster has {have:g} ({wanted}): lower "
                "rollout.workers, learner.ranks or critic.ranks, "
                f"or the *_per_worker and *_per_rank shares, or add nodes"
            )


def resolve_device(config: RunConfig, total: Resources) -> str:
    if config.device == "auto":
        return "cuda" if config.logical_gpus() > 0 and total.gpus > 0 else "cpu"
    return config.device
