"""Reward models in this process, for commands that score without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sppo_ray.config import ModelReward
from sppo_ray.models.bundled import resolve_model
from sppo_ray.rewards.scorer import Conversation

if TYPE_CHECKING:
    from sppo_ray.models.reward_model import QueuedRewardModel


class LocalModels:
    """Loads a reward model at its first use and keeps it: the `ask` of `build_scorer`."""

    def __init__(self) -> None:
        self._loaded: dict[ModelReward, QueuedRewardModel] = {}

    async def __call__(
        self, model: ModelReward, conversations: Sequence[Conversation]
    ) -> Sequence[float | str]:
        """Return the scores. Raises UserError when the checkpoint is no reward model."""
        from sppo_ray.models.reward_model import QueuedRewardModel, RewardModel

        if model not in self._loaded:
            self._loaded[model] = QueuedRewardModel(RewardModel(resolve_model(model.model), model))
        return await self._loaded[model].score(conversations)
