"""What the rollout fleet keeps of each worker and of each request, and what it shows of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from sppo_ray.trainer.health import Event, Health, RestartBudget, Vitals, WorkerHealth
from sppo_ray.trainer.interfaces import RolloutWorker, WeightReceipt, WorkerFailure, WorkerTimeout
from sppo_ray.types import RolloutRequest, SamplingSettings, Trajectory

T = TypeVar("T")
DROP_DEADLINE_S = 60.0  # for a worker to give up its requests
DROP_AGAIN_S = 1.0


class Places(Protocol):
    """Where workers can live. A place is held through all restarts of its worker."""

    needs: str  # of one worker: "2 CPU, 1 GPU"

    async def reserve(self, name: str) -> None:
        """Wait, without a limit, until there is room for one worker more. Cancelling it gives up."""
        ...

    def release(self, name: str) -> None:
        """Give a place back; no error when `name` holds none."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One row of the fleet table."""

    name: str
    state: str
    version: int | None
    restarts: int
    in_flight: int
    finished: int
    busy_seconds: float = 0.0  # in which it had a request, since this fleet began


@dataclass(frozen=True, slots=True)
class PendingView:
    """A worker that the cluster has no room for yet."""

    worker: str
    waiting_for: str  # "2 CPU, 1 GPU"
    since: float  # seconds since 1970


@dataclass(frozen=True, slots=True)
class FleetSync:
    """What a weight sync of the fleet proved: one receipt a worker, and the worst probe difference in nats."""

    receipts: tuple[WeightReceipt, ...]
    max_probe_difference: float


@dataclass(slots=True, eq=False)
class Asked:
    """A request on its way, and the queue of the caller that waits for its trajectory."""

    request: RolloutRequest
    sampling: SamplingSettings
    sink: asyncio.Queue[Trajectory | Exception]
    epoch: int  # of the fleet, when it was asked


@dataclass(slots=True, eq=False)
class Member:
    """A worker of the fleet through all its incarnations."""

    name: str
    budget: RestartBudget
    worker: RolloutWorker | None = None
    health: WorkerHealth = field(default_factory=WorkerHealth)
    in_flight: int = 0
    finished: int = 0
    vitals: Vitals = field(default_factory=lambda: Vitals.starting(0.0))  # of this incarnation
    lost: asyncio.Event = field(default_factory=asyncio.Event)  # of this incarnation: whoever waits for its answers gives up
    pending_since: float = 0.0  # seconds since 1970
    verified: asyncio.Event = field(default_factory=asyncio.Event)  # cleared while a pull is not yet proven
    last_failure: str = ""
    starting: asyncio.Task[None] | None = None  # brings it up, for the first time or again; done = nobody is at it
    serving: set[asyncio.Task[None]] = field(default_factory=set)  # one a batch
    is_leaving: bool = False  # asked to go, and not gone yet
    busy_seconds: float = 0.0  # up to `busy_since`
    busy_since: float = 0.0  # of the fleet's clock; holds while there are requests in flight

    def book(self, requests: int, now: float) -> None:
        """It has so many requests more in flight, or fewer."""
        if self.in_flight == 0:
            self.busy_since = now
        self.in_flight += requests
        if self.in_flight == 0:
            self.busy_seconds += now - self.busy_since

    async def unless_lost(self, work: Awaitable[T]) -> T:
        """What `work` returns. Raises WorkerFailure as soon as this incarnation is lost, whoever found that out."""
        answering, losing = asyncio.ensure_future(work), asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait({answering, losing}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise WorkerFailure(self.name, f"was lost meanwhile: {self.last_failure}")
            return answering.result()
        finally:
            answering.cancel()
            losing.cancel()

    async def outdate(self) -> None:
        """STALE from now on. Returns when the worker has given up every request and every stream has ended; raises
        WorkerFailure when it does not."""
        assert self.worker is not None
        if self.health.state is not Health.DRAINING:
            self.health = self.health.after(Event.OUTDATED)
        try:
            async with asyncio.timeout(DROP_DEADLINE_S):
                while self.serving:  # a batch may have been on its way to the worker when it was told
                    await self.unless_lost(self.worker.abort())
                    if ending := set(self.serving):
                        await asyncio.wait(ending, timeout=DROP_AGAIN_S)
        except TimeoutError:
            raise WorkerTimeout(self.name, f"did not give up its requests in {DROP_DEADLINE_S:.0f} s") from None

    @property
    def serves(self) -> str:
        """Which version, in words."""
        return "is up" if self.health.version is None else f"serves version {self.health.version}"

    @property
    def is_starting(self) -> bool:
        return self.starting is not None and not self.starting.done()

    def view(self, now: float) -> WorkerView:
        health = self.health
        busy_seconds = self.busy_seconds + (now - self.busy_since if self.in_flight else 0.0)
        return WorkerView(
            self.name, health.state.value, health.version, health.restarts, self.in_flight, self.finished, busy_seconds
        )


def least_needed(members: Sequence[Member]) -> list[Member]:
    """In the order in which they are given up: those without a place, those that do not serve, the others; the newest first."""
    not_serving = {Health.PENDING: 0, Health.RESTARTING: 1, Health.STALE: 1, Health.DEAD: 1}
    newest_first = members[::-1]
    return sorted(newest_first, key=lambda member: not_serving.get(member.health.state, 2))


def by_sampling(batch: Iterable[Asked]) -> list[list[Asked]]:
    groups: dict[SamplingSettings, list[Asked]] = {}
    for pending in batch:
        groups.setdefault(pending.sampling, []).append(pending)
    return list(groups.values())
