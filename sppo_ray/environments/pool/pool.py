"""Runs environments in killable processes; each process has many episodes at the same time.

    step(request) --> the process of its episode --> StepResult
                            | ended, frozen, or late: it is replaced
                            '--> once more in another process, from the start --> StepResult or an error

A late step may have been held up by another episode of its process, so every step under way there
is tried once more. One that fails twice is an error of its episode; no step is lost.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sppo_ray.config.environment import EnvironmentSettings
from sppo_ray.environments.base import Observation, StepRequest, StepResult
from sppo_ray.environments.pool.process import EnvironmentProcess, ProcessGone

_ATTEMPTS = 2
_MAX_FAILED_STARTS = 3
_SLACK_S = 1.0  # a process reports its own late steps first


class EnvironmentPoolFailed(RuntimeError):
    """The pool is closed, or its processes do not start: no step will be taken."""


@dataclass(slots=True)
class PoolCounters:
    """Totals since the pool started."""

    steps: int = 0  # answered, including errors
    errors: int = 0
    restarts: int = 0  # processes replaced


class EnvironmentPool:
    """`settings.processes` processes. Used from one event loop."""

    def __init__(self, settings: EnvironmentSettings) -> None:
        self.counters = PoolCounters()
        self._settings = settings
        self._places: list[EnvironmentProcess | None] = [None] * settings.processes
        self._starting = [asyncio.Lock() for _ in self._places]
        self._place_of: dict[str, int] = {}  # by episode
        self._is_closed = False

    async def ready(self) -> None:
        """Wait until every process runs. Raises UserError when the environment cannot be built, and
        EnvironmentPoolFailed.
        """
        await asyncio.gather(*(self._process(place) for place in range(len(self._places))))

    async def step(self, request: StepRequest) -> StepResult:
        """Take a step. A failure of the environment is in the result. Raises UserError and
        EnvironmentPoolFailed as `ready`.
        """
        if request.episode not in self._place_of:
            self._place_of[request.episode] = self._least_loaded()
        place = self._place_of[request.episode]
        failure = ""
        for _ in range(_ATTEMPTS):
            process = await self._free_process(place)
            # an episode that it does not hold is repeated from its start: made, reset, its actions
            steps = 1 if request.episode in process.episodes else len(request.actions) + 2
            try:
                async with asyncio.timeout(self._settings.deadline_s * steps + _SLACK_S):
                    return self._counted(await process.step(request), request)
            except TimeoutError:
                failure = f"no answer within {self._settings.deadline_s:g} s"
                await process.close("was ended, because a step was late")
            except ProcessGone as gone:
                failure = f"its process {gone}"
            finally:
                process.slots.release()
        return self._counted(StepResult(Observation(), 0.0, failure), request)

    def forget(self, episodes: Sequence[str]) -> None:
        """Drop episodes that have ended."""
        for episode in episodes:
            place = self._place_of.pop(episode, None)
            process = None if place is None else self._places[place]
            if process is not None:
                process.forget([episode])

    async def close(self) -> None:
        """End every process. Steps under way are errors."""
        self._is_closed = True
        await asyncio.gather(*(process.close() for process in self._places if process is not None))

    def _counted(self, result: StepResult, request: StepRequest) -> StepResult:
        self.counters.steps += 1
        if result.error:
            self.counters.errors += 1
        if result.error or result.observation.done or not request.actions:
            self.forget([request.episode])
        return result

    def _least_loaded(self) -> int:
        held = [0] * len(self._places)
        for place in self._place_of.values():
            held[place] += 1
        return held.index(min(held))

    async def _free_process(self, place: int) -> EnvironmentProcess:
        """Return the process of a place with one of its slots. The wait is no part of a step."""
        while True:
            process = await self._process(place)
            await process.slots.acquire()
            if not process.is_gone:
                return process
            process.slots.release()

    async def _process(self, place: int) -> EnvironmentProcess:
        """Return the process of a place; start one if there is none."""
        async with self._starting[place]:
            process = self._places[place]
            if process is not None and not process.is_gone:
                return process
            if self._is_closed:
                raise EnvironmentPoolFailed("the environment pool is closed")
            if process is not None:
                self.counters.restarts += 1
                await process.close()
            cause: Exception | None = None
            for _ in range(_MAX_FAILED_STARTS):
                try:
                    self._places[place] = started = await EnvironmentProcess.start(self._settings)
                    return started
                except ProcessGone as gone:
                    cause = gone
            raise EnvironmentPoolFailed(
                f"the environment process {cause}, {_MAX_FAILED_STARTS} times: its own message is in this "
                "process's stderr"
            )
