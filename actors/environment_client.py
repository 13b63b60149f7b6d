"""The driver's client of the environment actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ray.actor import ActorHandle

from actors.remote_calls import PING_TIMEOUT_S, answer, kill
from sppo_ray.config import RecoverySettings
from sppo_ray.environments.base import StepRequest, StepResult
from sppo_ray.rollout.liveness import WatchedRole

STEP_SLACK_S = 60.0
PROCESS_RESTART_S = 30.0  # replacing a process that was killed or is late


class RayEnvironmentClient:
    """Client of one EnvironmentActor.

    The actor's pool enforces the deadline of each step. The deadline here only detects a frozen
    actor, so it is long enough for an episode to be repeated twice.
    """

    def __init__(self, handle: ActorHandle, *, deadline_s: float) -> None:
        self._handle = handle
        self._watched = WatchedRole({"environment": self._ping})
        self._deadline_s = deadline_s

    async def ready(self, timeout_s: float) -> None:
        """Wait until the environment runs. Raises UserError for one that cannot be built."""
        await answer("environment", "start-up", self._handle.ping.remote(), timeout_s)

    async def step(self, request: StepRequest) -> StepResult:
        repeated = (len(request.actions) + 2) * self._deadline_s + PROCESS_RESTART_S
        call = self._handle.step.remote(request)
        return await answer("environment", "a step", call, STEP_SLACK_S + 2 * repeated)

    def forget(self, episodes: Sequence[str]) -> None:
        self._handle.forget.remote(list(episodes))

    async def watch(self, settings: RecoverySettings) -> NoReturn:
        """Run until cancelled. Raises WorkerFailure when the actor is lost. The actor itself
        replaces lost processes.
        """
        await self._watched.watch(settings)

    async def _ping(self) -> Mapping[str, Any]:
        counters = await answer("environment", "a ping", self._handle.ping.remote(), PING_TIMEOUT_S)
        return {"progress": counters["steps"]}

    async def memory(self) -> Mapping[str, int]:
        reporting = self._handle.memory.remote()
        return {
            "environment": await answer("environment", "reporting its memory", reporting, PING_TIMEOUT_S)
        }

    def kill(self) -> None:
        kill(self._handle)

    async def close(self) -> None:
        self.kill()
