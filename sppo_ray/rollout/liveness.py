"""Monitors processes and reports those that answer no probes or make no progress.

    every tick, for each process:   probe --answer--> vitals     when it last answered, its counter
                                    vitals --finding--> fine | suspect | dead --> listener

The same monitor is used for the engines of a fleet and for the processes of a role (learner,
critic, reference, reward). `Watched` defines when progress is due, `Listener` acts on a finding.

A frozen process answers no probe. A stuck process answers all probes, but its counter does not
change. A missing answer does not block the monitor. Deadlines of calls are long, because they must
suit the slowest call; the monitor finds a loss within half a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NoReturn, Protocol, TypeVar

from sppo_ray.config import RecoverySettings, RolloutSettings
from sppo_ray.protocols import WorkerFailure, WorkerTimeout
from sppo_ray.rollout.health import Symptoms, Vitals
from sppo_ray.rollout.tasks import end_tasks

CHECKS_PER_TIMEOUT = 4  # minimum number of checks within each time-out


class Watched(Protocol):
    """A monitored process. It may be restarted; each restart is a new incarnation."""

    name: str
    vitals: Vitals

    @property
    def symptoms(self) -> Symptoms: ...

    @property
    def incarnation(self) -> int:
        """Number of the incarnation. Answers of earlier incarnations are ignored."""
        ...

    @property
    def progress_is_due(self) -> bool: ...

    @property
    def patience(self) -> float:
        """Factor of the time-out of probes."""
        ...

    async def probe(self) -> int:
        """Return the progress counter. Raises WorkerFailure."""
        ...


W = TypeVar("W", bound=Watched)
T = TypeVar("T")


class Listener(Protocol[W]):
    """Acts on the findings of the monitor."""

    def lost(self, process: W, failure: WorkerFailure) -> None: ...

    def suspected(self, process: W) -> None: ...

    def recovered(self, process: W) -> None: ...


class LivenessMonitor(Generic[W]):
    """Monitors `processes()`, which may change between ticks, and reports to `listener`."""

    def __init__(
        self,
        processes: Callable[[], Sequence[W]],
        listener: Listener[W],
        settings: RolloutSettings | RecoverySettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processes = processes
        self._listener = listener
        self._settings = settings
        self._clock = clock
        shortest = min(settings.probe_timeout_s, settings.stall_timeout_s)
        self._tick_s = min(settings.probe_every_s, shortest / CHECKS_PER_TIMEOUT)
        # probes in progress, with the process and its incarnation
        self._probes: dict[asyncio.Future[int], tuple[W, int]] = {}
        self._ended: asyncio.Queue[asyncio.Future[Any]] = asyncio.Queue()  # probes, and the tick

    async def run(self) -> NoReturn:
        """Run until cancelled, or until `listener` raises."""
        looked_at = self._clock()
        tick = self._begin(asyncio.sleep(self._tick_s))
        try:
            while True:
                ended = await self._ended.get()
                if ended is tick:
                    tick = self._begin(asyncio.sleep(self._tick_s))
                    now = self._clock()
                    self._look(now, late_by=now - looked_at - self._tick_s)
                    looked_at = now
                else:
                    self._read(ended, *self._probes.pop(ended))
        finally:
            await end_tasks([tick, *self._probes])

    def _begin(self, work: Awaitable[T]) -> asyncio.Future[T]:
        """A task that `run` is told the end of."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._ended.put_nowait)
        return task

    def _look(self, now: float, late_by: float) -> None:
        probed = {process.name for process, _ in self._probes.values()}
        for process in self._processes():
            # this driver was frozen or busy, so received answers may be unread
            if late_by > self._tick_s:
                process.vitals.forgive(late_by)
            if process.name not in probed:
                self._probes[self._begin(process.probe())] = (process, process.incarnation)
            self._judge(process, now)

    def _read(self, probe: asyncio.Future[int], process: W, incarnation: int) -> None:
        try:
            counter = probe.result()
        except WorkerTimeout:
            return  # the clock says when that is too long
        except WorkerFailure as failure:
            if process.incarnation == incarnation:
                self._listener.lost(process, failure)
            return
        if process.incarnation == incarnation:
            process.vitals.answered(self._clock(), counter)

    def _judge(self, process: W, now: float) -> None:
        found = process.vitals.finding(
            now,
            has_work=process.progress_is_due,
            probe_timeout_s=self._settings.probe_timeout_s * process.patience,
            stall_timeout_s=self._settings.stall_timeout_s,
            symptoms=process.symptoms,
        )
        if found.is_dead:
            self._listener.lost(process, WorkerTimeout(process.name, found.what))
        elif found.is_suspect:
            self._listener.suspected(process)
        else:
            self._listener.recovered(process)


# ---------------------------------------------------------------------------- processes of a role

Kind = Literal["steady", "opaque"]
"""Kind of a call. steady: the process's counter shows progress. opaque: it does not, and the
process may not answer probes meanwhile, e.g. while it reads or writes files.
"""
Ping = Callable[[], Awaitable[Mapping[str, Any]]]
# PyTorch and safetensors let other threads run while they write: a tenth of a second of silence a
# gigabyte
OPAQUE_FACTOR = 2.0
_SYMPTOMS = Symptoms(
    silent="frozen, swapped out, or its node is cut off", stalled="got nothing done", cause="stuck"
)


class WatchedRole:
    """Monitors the processes of one role. `pings[name]()` returns {"progress": count}.

    Every call on the role runs within `call`, so that progress is only required during calls. Used
    from one event loop.
    """

    def __init__(self, pings: Mapping[str, Ping], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._processes = [
            RoleProcess(name, self, ping, Vitals.starting(clock())) for name, ping in pings.items()
        ]
        self.calls: Counter[Kind] = Counter()  # outstanding

    @contextlib.contextmanager
    def call(self, kind: Kind) -> Iterator[None]:
        """Mark the block as a call on the role."""
        if kind == "steady" and not self.calls[kind]:
            for process in self._processes:
                process.vitals.progressed(self._clock())
        self.calls[kind] += 1
        try:
            yield
        finally:
            self.calls[kind] -= 1
            if kind == "opaque":
                for process in self._processes:
                    process.vitals.answered(self._clock(), process.vitals.counter)

    async def watch(self, settings: RecoverySettings) -> NoReturn:
        """Run until cancelled. Raises WorkerFailure when a process is lost."""
        for process in self._processes:
            process.vitals = Vitals.starting(self._clock())
        await LivenessMonitor(lambda: self._processes, self, settings, self._clock).run()

    def lost(self, process: RoleProcess, failure: WorkerFailure) -> None:
        raise failure

    def suspected(self, process: RoleProcess) -> None:
        """Do nothing: no other process can take over the work."""

    def recovered(self, process: RoleProcess) -> None:
        """Do nothing."""


@dataclass(slots=True, eq=False)
class RoleProcess:
    """A process that is never restarted. After a loss, new processes replace the role."""

    name: str
    role: WatchedRole
    ping: Ping
    vitals: Vitals
    symptoms: Symptoms = _SYMPTOMS
    incarnation: int = 0

    @property
    def progress_is_due(self) -> bool:
        return self.role.calls["steady"] > 0 and self.role.calls["opaque"] == 0

    @property
    def patience(self) -> float:
        return OPAQUE_FACTOR if self.role.calls["opaque"] else 1.0

    async def probe(self) -> int:
        return int((await self.ping())["progress"])
