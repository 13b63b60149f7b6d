"""Whose turn it is on the GPUs: the phases of `phases.py`, carried out.

    trainer --enter(phase)--> [close the door to starting engines, sleep, offload, reload] --> phase
    an engine that was lost --starting()--> waits for GENERATE, starts, loads the version

Engines wake by pulling weights, not by a phase, because sleep loses their weights. An engine that
is lost while others train takes no memory until GENERATE: its process starts only then.

By `flat` the learner publishes to host memory and has left the GPU when the engines load a version.
By `ipc` its weights are back while it sends, as in all calls that read (`actors/offload.py`,
`with_resident`); the engines bring their KV cache when it has left again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from sppo_ray.protocols import TrainingWorker
from sppo_ray.trainer.phases import NEEDS, Move, Phase, Tenant, moves


class Turns(Protocol):
    """What the trainer and the manager of the workers call at the border of each phase."""

    is_shared: bool

    async def enter(self, phase: Phase) -> None: ...


class Separate:
    """Each role has devices of its own: every phase is open at any time."""

    is_shared = False

    async def enter(self, phase: Phase) -> None:
        pass


class Colocated:
    """All roles take turns on the same GPUs. `sleep_engines` ends when all engines sleep."""

    is_shared = True

    def __init__(self, sleep_engines: Callable[[], Awaitable[None]]) -> None:
        self.phase = Phase.REST
        self._sleep_engines = sleep_engines
        self._trainers: dict[Tenant, TrainingWorker] = {}
        self._door = asyncio.Event()  # set in GENERATE: engines may start
        self._starting = 0  # engines
        self._none_starts = asyncio.Event()
        self._none_starts.set()

    def add(self, tenant: Tenant, worker: TrainingWorker) -> None:
        """Add a learner or critic that has just started, in its own phase; it holds ALL."""
        self._trainers[tenant] = worker

    async def enter(self, phase: Phase) -> None:
        """Take the GPUs to a phase. Raises IllegalPhase, and WorkerFailure of a learner or critic;
        after an error the phase is REST as far as engines are concerned, and a `reset` is due.
        """
        if phase is self.phase:
            return
        planned = moves(self.phase, phase)
        await self._close_door()
        for move in planned:
            await self._make(move)
        self.phase = phase
        if phase is Phase.GENERATE:
            self._door.set()

    async def reset(self) -> None:
        """Return to REST after a loss; learner and critic have ended."""
        self._trainers.clear()
        await self._close_door()
        await self._sleep_engines()

    @asynccontextmanager
    async def starting(self) -> AsyncIterator[None]:
        """Wait until an engine may take memory. No other phase begins before the block ends."""
        while not self._door.is_set():
            await self._door.wait()  # it may close again before this task runs
        self._starting += 1
        self._none_starts.clear()
        try:
            yield
        finally:
            self._starting -= 1
            if not self._starting:
                self._none_starts.set()

    async def _close_door(self) -> None:
        self.phase = Phase.REST
        self._door.clear()
        await self._none_starts.wait()

    async def _make(self, move: Move) -> None:
        if move.tenant == "engines":
            if move.to < NEEDS[Phase.GENERATE].engines:
                await self._sleep_engines()
        elif move.tenant in self._trainers:
            await self._trainers[move.tenant].hold(move.to)
