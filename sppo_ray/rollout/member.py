"""State of each worker and each request of the rollout fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from sppo_ray.protocols import RolloutWorker, WorkerFailure, WorkerTimeout
from sppo_ray.rollout.health import (
    ENGINE_SYMPTOMS,
    Event,
    Health,
    RestartBudget,
    Symptoms,
    Vitals,
    WorkerHealth,
)
from sppo_ray.rollout.tasks import drop_task
from sppo_ray.rollout.views import WorkerView
from sppo_ray.types import RolloutRequest, SamplingSettings, Trajectory

T = TypeVar("T")
DROP_DEADLINE_S = 60.0  # deadline for a worker to drop its requests
DROP_AGAIN_S = 1.0


class PlacementPool(Protocol):
    """Reserves places for workers. A worker keeps its place through all restarts."""

    needs: str  # resources of one worker: "2 CPU, 1 GPU"

    async def reserve(self, name: str) -> None:
        """Wait without a time limit until there is room for one more worker."""
        ...

    def release(self, name: str) -> None:
        """Release the place of `name`, if it has one."""
        ...


Sink = asyncio.Queue[Sequence[Trajectory] | Exception]
"""The queue of a caller of `generate`: bursts of trajectories, or the error that ends them."""


@dataclass(slots=True, eq=False)
class PendingRequest:
    """An unfinished request and the queue of its caller."""

    request: RolloutRequest
    sampling: SamplingSettings
    sink: Sink
    epoch: int  # epoch of the dispatcher when the request was made


@dataclass(slots=True, eq=False)
class Member:
    """A worker of the fleet, including its restarts. Implements `liveness.Watched`."""

    name: str
    budget: RestartBudget
    worker: RolloutWorker | None = None
    health: WorkerHealth = field(default_factory=WorkerHealth)
    in_flight: int = 0
    finished: int = 0
    vitals: Vitals = field(default_factory=lambda: Vitals.starting(0.0))  # of this incarnation
    # set when this incarnation is lost; ends all waits for its answers
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    pending_since: float = 0.0  # seconds since 1970
    # cleared while a pull is unverified
    verified: asyncio.Event = field(default_factory=asyncio.Event)
    last_failure: str = ""
    # the task that starts or restarts the worker, if it is not done
    starting: asyncio.Task[None] | None = None
    serving: set[asyncio.Task[None]] = field(default_factory=set)  # one task per batch
    # STALE until the next weight sync, because the learner's weights are newer than the version
    waits_for_version: bool = False
    is_leaving: bool = False  # draining or being removed
    busy_seconds: float = 0.0  # seconds with requests in flight, before `busy_since`
    busy_since: float = 0.0  # start of the current busy time, on the fleet's clock
    symptoms: Symptoms = ENGINE_SYMPTOMS
    patience: float = 1.0

    @property
    def incarnation(self) -> int:
        return self.health.restarts

    @property
    def progress_is_due(self) -> bool:
        """Whether tokens are due. They are not during a pull, which has its own deadline."""
        return self.in_flight > 0 and self.verified.is_set()

    async def probe(self) -> int:
        assert self.worker is not None
        return int((await self.worker.ping())["tokens_generated"])

    def book(self, requests: int, now: float) -> None:
        """Add `requests`, which may be negative, to the requests in flight."""
        if self.in_flight == 0:
            self.busy_since = now
        self.in_flight += requests
        if self.in_flight == 0:
            self.busy_seconds += now - self.busy_since

    async def unless_lost(self, work: Awaitable[T]) -> T:
        """Return the result of `work`. Raises WorkerFailure as soon as this incarnation is lost."""
        answering, losing = asyncio.ensure_future(work), asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait({answering, losing}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise WorkerFailure(self.name, f"was lost meanwhile: {self.last_failure}")
            return answering.result()
        finally:
            drop_task(answering)  # its call may still fail
            drop_task(losing)

    async def outdate(self) -> None:
        """Make the member STALE, and wait until it has dropped all requests. Raises WorkerFailure
        when it does not.
        """
        assert self.worker is not None
        if self.health.state is not Health.DRAINING:
            self.health = self.health.after(Event.OUTDATED)
        try:
            async with asyncio.timeout(DROP_DEADLINE_S):
                # repeat, because a batch may arrive at the worker after an abort
                while self.serving:
                    await self.unless_lost(self.worker.abort())
                    if ending := set(self.serving):
                        await asyncio.wait(ending, timeout=DROP_AGAIN_S)
        except TimeoutError:
            raise WorkerTimeout(self.name, f"did not drop its requests in {DROP_DEADLINE_S:.0f} s") from None

    @property
    def serves(self) -> str:
        """Text for messages: the version that the worker serves."""
        return "is up" if self.health.version is None else f"serves version {self.health.version}"

    @property
    def is_starting(self) -> bool:
        return self.starting is not None and not self.starting.done()

    def view(self, now: float) -> WorkerView:
        health = self.health
        busy_seconds = self.busy_seconds + (now - self.busy_since if self.in_flight else 0.0)
        return WorkerView(
            self.name,
            health.state.value,
            health.version,
            health.restarts,
            self.in_flight,
            self.finished,
            busy_seconds,
        )


OnLost = Callable[[Member, WorkerFailure, int], None]  # (member, what happened, its incarnation)


def least_needed(members: Sequence[Member]) -> list[Member]:
    """Sort members in the order in which they are removed: those without a place, those that do not
    serve, the others; in each group the newest first.
    """
    not_serving = {Health.PENDING: 0, Health.RESTARTING: 1, Health.STALE: 1, Health.DEAD: 1}
    newest_first = members[::-1]
    return sorted(newest_first, key=lambda member: not_serving.get(member.health.state, 2))


def by_sampling(batch: Iterable[PendingRequest]) -> list[list[PendingRequest]]:
    groups: dict[SamplingSettings, list[PendingRequest]] = {}
    for pending in batch:
        groups.setdefault(pending.sampling, []).append(pending)
    return list(groups.values())
