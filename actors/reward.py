"""The reward actor: scores responses in a pool of verifier processes. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray

from actors.memory import peak_bytes
from sppo_ray.config import RewardSettings
from sppo_ray.rewards.pool.pool import VerifierPool
from sppo_ray.types import ScoreRequest, Verdict


@ray.remote
class RewardActor:
    """Scores bursts of responses.

    Every method raises UserError when the verifier is misconfigured or returns a reward outside its
    range, and VerifierPoolFailed when its processes do not start or the actor is closed.
    """

    def __init__(self, name: str, settings: RewardSettings) -> None:
        self.name = name
        self._pool = VerifierPool(settings)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """Return the verdicts in the order of the requests. A sample that hangs delays the answer
        until its deadline.
        """
        return await self._pool.score_all(requests)

    async def ping(self) -> Mapping[str, Any]:
        """Wait until a verifier process is ready; return the actor's name and its counts."""
        await self._pool.ready()
        return {"worker": self.name, **asdict(self._pool.counters)}

    async def memory(self) -> int:
        """Return the peak bytes of this process and its verifier processes (`actors.memory`)."""
        return peak_bytes("cpu")

    async def close(self) -> None:
        await self._pool.close()
