"""The reward actor: a pool of killable verifier processes behind Ray calls. Needs no GPU and never imports torch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray

from actors.memory import peak_bytes
from sppo_ray.config import RewardSettings
from sppo_ray.rewards.pool import VerifierPool
from sppo_ray.types import ScoreRequest, Verdict


class RewardWorker:
    """Scores responses; implements `sppo_ray.trainer.interfaces.Scorer`, and whole batches in one call.

    Every method raises UserError when the verifier is misconfigured or leaves its range, and VerifierPoolFailed when
    its processes do not start or the worker is closed.
    """

    def __init__(self, name: str, settings: RewardSettings) -> None:
        self.name = name
        self._pool = VerifierPool(settings)

    async def score(self, request: ScoreRequest) -> Verdict:
        return await self._pool.score(request)

    async def score_batch(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """Verdicts in the order of the requests. One sample that hangs delays the answer by its deadline."""
        return list(await asyncio.gather(*(self._pool.score(request) for request in requests)))

    async def ping(self) -> Mapping[str, Any]:
        """Waits until a verifier process is ready; then the worker's name and its totals since the start."""
        await self._pool.ready()
        return {"worker": self.name, **asdict(self._pool.counters)}

    async def memory(self) -> int:
        """Peak bytes of this process and its verifier processes (`actors.memory`)."""
        return peak_bytes("cpu")

    async def close(self) -> None:
        await self._pool.close()


RewardActor = ray.remote(RewardWorker)
