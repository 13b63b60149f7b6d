"""The reward model's actor: scores conversations, on a CPU or a GPU."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch
import transformers

from actors.memory import peak_bytes
from sppo_ray.config import ModelReward
from sppo_ray.models.reward_model import QueuedRewardModel, RewardModel, Score


class RewardModelReplica:
    """One replica. Order of calls: `setup`, then `score` any number of times, also concurrently."""

    def __init__(self, name: str, settings: ModelReward, *, model_path: str) -> None:
        self.name = name
        self._settings = settings
        self._model_path = model_path
        self._model: QueuedRewardModel | None = None

    async def setup(self) -> dict[str, Any]:
        """Load the model. Returns {"parameters": total, "device": "cpu" | "cuda"}.

        Raises:
            UserError: the checkpoint is no reward model.
        """
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(max(1, int(self._settings.cpus_per_replica)))
        model = await asyncio.to_thread(RewardModel, self._model_path, self._settings)
        self._model = QueuedRewardModel(model)
        return {"parameters": model.parameters, "device": model.device}

    async def score(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[Score]:
        """Return the scores in the order of the conversations."""
        if self._model is None:
            raise RuntimeError("setup() comes first")
        return await self._model.score(conversations)

    async def ping(self) -> dict[str, Any]:
        """Return {"pid", "progress"}; "progress" counts scored conversations."""
        return {"pid": os.getpid(), "progress": 0 if self._model is None else self._model.scored}

    async def memory(self) -> int:
        """Return the peak bytes of this process (`actors.memory`)."""
        return peak_bytes("cuda" if self._settings.gpus_per_replica > 0 else "cpu")


RewardModelActor = ray.remote(RewardModelReplica)
