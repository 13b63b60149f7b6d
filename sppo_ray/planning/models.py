"""The shapes of a run's models."""

from __future__ import annotations

from dataclasses import dataclass

from sppo_ray.config import RunConfig
from sppo_ray.planning.rewards import reward_shapes
from sppo_ray.planning.shapes import ModelShape, find_shape


@dataclass(frozen=True, slots=True)
class Models:
    """Shapes of policy and critic, and of each reward model. critic: None = the algorithm has no
    critic; a reward model: None = its shape is not known.
    """

    policy: ModelShape
    critic: ModelShape | None
    rewards: tuple[ModelShape | None, ...] = ()


def models_of(
    config: RunConfig, policy: ModelShape | None = None, critic: ModelShape | None = None
) -> Models:
    """Return the shapes of a run's models; given ones are not looked up. Raises UserError."""
    policy = policy or find_shape(config.learner.model)
    rewards = reward_shapes(config.reward)
    if not config.has_critic:
        return Models(policy, None, rewards)
    if critic is None:
        same = config.critic.model == config.learner.model
        critic = policy if same else find_shape(config.critic.model)
    return Models(policy, critic, rewards)
