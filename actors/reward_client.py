"""The driver's client of the reward actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Client of one RewardActor.

    The actor's pool enforces the deadline of each sample. The deadline here only detects a frozen
    actor, so it is long enough for all outstanding samples to time out one after another.
    """

    def __init__(self, handle: ActorHandle, *, deadline_s: float) -> None:
        self._handle = handle
        self._watched = WatchedRole({"reward": self._ping})
        self._deadline_s = deadline_s
        self._outstanding = 0

    async def ready(self, timeout_s: float) -> None:
        """Wait until a verifier runs. Raises UserError for an unusable reward function."""
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
        """Run until cancelled. Raises WorkerFailure when the actor is lost. The actor itself
        replaces lost verifier processes.
        """
        await self._watched.watch(settings)

    async def _ping(self) -> Mapping[str, Any]:
        counters = await answer("reward", "a ping", self._handle.ping.remote(), PING_TIMEOUT_S)
        return {"progress": counters["scored"]}

    async def memory(self) -> Mapping[str, int]:
        return {
            "reward": await answer(
                "reward", "reporting its memory", self._handle.memory.remote(), PING_TIMEOUT_S
            )
        }

    def kill(self) -> None:
        kill(self._handle)

    async def close(self) -> None:
        self.kill()
