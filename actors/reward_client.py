"""The driver's client of the reward actor."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from ray.actor import ActorHandle

from actors.remote_calls import PING_TIMEOUT_S, answer, kill
from sppo_ray.config import RecoverySettings
from sppo_ray.protocols import ScoreRequest
from sppo_ray.rollout.liveness import WatchedRole
from sppo_ray.types import Verdict

REWARD_SLACK_S = 60.0
PROCESS_RESTART_S = 30.0  # replacing a killed verifier process


class RayRewardClient:
    """Client of one RewardActor, and of the reward models that it asks.

    The actor's pool enforces the deadline of each sample. The deadline here only detects a frozen
    actor, so it is long enough for all outstanding samples to time out one after another.
    """

    def __init__(
        self, handle: ActorHandle, *, deadline_s: float, models: Mapping[str, ActorHandle] | None = None
    ) -> None:
        """`models`: the reward models by name."""
        self._handle = handle
        self._models = models or {}
        pings = {name: partial(self._ping_model, name) for name in self._models}
        self._watched = WatchedRole({"reward": self._ping, **pings})
        self._deadline_s = deadline_s
        self._outstanding = 0

    async def ready(self, timeout_s: float) -> None:
        """Wait until verifiers and models run. Raises UserError for an unusable reward function."""
        await asyncio.gather(
            *(
                answer(name, "start-up", model.setup.remote(), timeout_s)
                for name, model in self._models.items()
            )
        )
        await answer("reward", "start-up", self._handle.ping.remote(), timeout_s)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        self._outstanding += len(requests)
        timeout_s = REWARD_SLACK_S + self._outstanding * (self._deadline_s + PROCESS_RESTART_S)
        try:
            call = self._handle.score.remote(list(requests))
            return await answer("reward", f"scoring {len(requests)} responses", call, timeout_s)
        finally:
            self._outstanding -= len(requests)

    async def watch(self, settings: RecoverySettings) -> NoReturn:
        """Run until cancelled. Raises WorkerFailure when an actor is lost. The reward actor itself
        replaces lost verifier processes.
        """
        await self._watched.watch(settings)

    async def _ping(self) -> Mapping[str, Any]:
        counters = await answer("reward", "a ping", self._handle.ping.remote(), PING_TIMEOUT_S)
        return {"progress": counters["scored"]}

    async def _ping_model(self, name: str) -> Mapping[str, Any]:
        return await answer(name, "a ping", self._models[name].ping.remote(), PING_TIMEOUT_S)

    async def memory(self) -> Mapping[str, int]:
        handles = {"reward": self._handle, **self._models}
        used = await asyncio.gather(
            *(
                answer(name, "reporting its memory", handle.memory.remote(), PING_TIMEOUT_S)
                for name, handle in handles.items()
            )
        )
        return dict(zip(handles, used, strict=True))

    def kill(self) -> None:
        for handle in (self._handle, *self._models.values()):
            kill(handle)

    async def close(self) -> None:
        self.kill()
