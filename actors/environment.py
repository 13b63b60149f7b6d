"""The environment actor: runs environments in a pool of processes. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray

from actors.memory import peak_bytes
from sppo_ray.config import EnvironmentSettings
from sppo_ray.environments.base import StepRequest, StepResult
from sppo_ray.environments.pool.pool import EnvironmentPool

MAX_STEPS = 10_000
"""Steps that may be under way at the same time."""


@ray.remote(max_concurrency=MAX_STEPS)
class EnvironmentActor:
    """Answers actions. `step` and `ping` raise UserError when the environment cannot be built, and
    EnvironmentPoolFailed when its processes do not start.
    """

    def __init__(self, name: str, settings: EnvironmentSettings) -> None:
        self.name = name
        self._pool = EnvironmentPool(settings)

    async def step(self, request: StepRequest) -> StepResult:
        return await self._pool.step(request)

    async def forget(self, episodes: Sequence[str]) -> None:
        self._pool.forget(episodes)

    async def ping(self) -> Mapping[str, Any]:
        """Wait until every process is ready; return the actor's name and its counts."""
        await self._pool.ready()
        return {"worker": self.name, **asdict(self._pool.counters)}

    async def memory(self) -> int:
        """Return the peak bytes of this process and its child processes (`actors.memory`)."""
        return peak_bytes("cpu")

    async def close(self) -> None:
        await self._pool.close()
