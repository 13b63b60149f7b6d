"""The reward actor: scores responses in a pool of verifier processes. Does not import torch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from pydantic import SecretStr
from ray.actor import ActorHandle

from actors.memory import peak_bytes
from sppo_ray.config import ModelReward, RewardSettings
from sppo_ray.rewards.build import build_scorer
from sppo_ray.rewards.scorer import Conversation
from sppo_ray.types import ScoreRequest, Verdict


@ray.remote
class RewardActor:
    """Scores bursts of responses.

    Every method raises UserError when the verifier is misconfigured or returns a reward outside its
    range, and VerifierPoolFailed when its processes do not start or the actor is closed.
    """

    def __init__(
        self,
        name: str,
        settings: RewardSettings,
        models: Sequence[Sequence[ActorHandle]] = (),
        keys: Mapping[str, SecretStr] | None = None,
    ) -> None:
        """`models`: the replicas of each of `settings.models`; `keys`: those of judges, by
        environment variable.
        """
        self.name = name
        self._models = [Replicas(handles) for handles in models]
        self._settings = settings
        self._scorer = build_scorer(settings, self._ask, keys or {})

    async def _ask(self, model: ModelReward, conversations: Sequence[Conversation]) -> Sequence[float | str]:
        return await self._models[self._settings.models.index(model)].score(conversations)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """Return the verdicts in the order of the requests. A sample that hangs delays the answer
        until its deadline.
        """
        return await self._scorer.score_all(requests)

    async def ping(self) -> Mapping[str, Any]:
        """Wait until a verifier process is ready; return the actor's name and its counts."""
        await self._scorer.ready()
        return {"worker": self.name, **self._scorer.counts()}

    async def memory(self) -> int:
        """Return the peak bytes of this process and its verifier processes (`actors.memory`)."""
        return peak_bytes("cpu")

    async def close(self) -> None:
        await self._scorer.close()


class Replicas:
    """Spreads conversations over equal reward models (`actors.reward_model`)."""

    def __init__(self, handles: Sequence[ActorHandle]) -> None:
        self._handles = handles
        self._outstanding = [0] * len(handles)

    async def score(self, conversations: Sequence[Conversation]) -> list[float | str]:
        """Return the scores in the order of the conversations. Raises Ray's error when a replica is
        lost.
        """
        size = -(-len(conversations) // len(self._handles))
        parts = [conversations[at : at + size] for at in range(0, len(conversations), size or 1)]
        scores = await asyncio.gather(*(self._score(part) for part in parts))
        return [score for part in scores for score in part]

    async def _score(self, conversations: Sequence[Conversation]) -> list[float | str]:
        least = min(range(len(self._handles)), key=lambda index: self._outstanding[index])
        self._outstanding[least] += len(conversations)
        try:
            return await self._handles[least].score.remote(list(conversations))
        finally:
            self._outstanding[least] -= len(conversations)
