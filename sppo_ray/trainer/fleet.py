"""The rollout fleet: hands requests to engines, heals dead engines, and lets each request reach its caller once.

    generate(requests) --least loaded--> _serve(member, batch) --stream--> caller's queue
                            ^                    | worker died or wedged
                            |                    v
                         backlog <--unfinished-- _lost --back-off--> _revive: spawn, pull, verify --> HEALTHY

A request is in exactly one place: a backlog, or one member's batch. It leaves by its trajectory or by an error.
Wedged engines are found by progress (tokens generated), since a wedged engine may still answer pings.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sppo_ray.config import RolloutSettings
from sppo_ray.trainer.health import Event, Health, WorkerHealth, restart_delay_s
from sppo_ray.trainer.interfaces import PublishedWeights, RolloutWorker, WeightReceipt, WorkerFailure, WorkerTimeout
from sppo_ray.trainer.weight_sync import ProbeTolerance, verify_receipt
from sppo_ray.types import RolloutRequest, SamplingSettings, Trajectory

Spawn = Callable[[str], Awaitable[RolloutWorker]]
OnEvent = Callable[[str, str], None]  # (kind, message)


class FleetExhausted(WorkerFailure):
    """Every rollout worker has used up its restarts."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One row of the fleet table."""

    name: str
    state: str
    version: int | None
    restarts: int
    in_flight: int
    finished: int


@dataclass(frozen=True, slots=True)
class FleetSync:
    """What a weight sync of the fleet proved: one receipt a worker, and the worst probe difference in nats."""

    receipts: tuple[WeightReceipt, ...]
    max_probe_difference: float


@dataclass(slots=True, eq=False)
class _Pending:
    request: RolloutRequest
    sampling: SamplingSettings
    sink: asyncio.Queue[Trajectory | Exception]


@dataclass(slots=True, eq=False)
class _Member:
    name: str
    worker: RolloutWorker | None = None
    health: WorkerHealth = field(default_factory=WorkerHealth)
    in_flight: int = 0
    finished: int = 0
    tokens_seen: int = -1
    progress_at: float = 0.0
    verified: asyncio.Event = field(default_factory=asyncio.Event)  # cleared while a pull is not yet proven
    reviving: bool = False  # a task is at work from its death until it serves or is retired
    last_failure: str = ""


class RolloutFleet:
    """Rollout workers as one engine. `spawn(name)` brings up a worker that still has to be synced."""

    def __init__(
        self,
        spawn: Spawn,
        *,
        settings: RolloutSettings,
        tolerance: ProbeTolerance | None,
        on_event: OnEvent,
        fixed_weights: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With `fixed_weights` the engines serve what they were started with, and nothing is ever synced."""
        self._spawn = spawn
        self._settings = settings
        self._tolerance = tolerance  # None: receipts are not compared
        self._on_event = on_event
        self._fixed_weights = fixed_weights
        self._clock = clock
        self._members = [_Member(f"rollout-{index}") for index in range(settings.workers)]
        self._backlog: deque[_Pending] = deque()
        self._published: PublishedWeights | None = None
        self._sync_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------------------------------------ life cycle

    async def start(self) -> None:
        """Bring up all workers. The first start is no place to heal: a failure stops the run, naming the worker."""
        await asyncio.gather(*(self._bring_up(member) for member in self._members))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(m.worker.close() for m in self._members if m.worker is not None), return_exceptions=True)

    def view(self) -> list[WorkerView]:
        return [
            WorkerView(m.name, m.health.state.value, m.health.version, m.health.restarts, m.in_flight, m.finished)
            for m in self._members
        ]

    async def memory(self) -> dict[str, int]:
        """Peak bytes of each living worker that answers."""
        living = [m.worker for m in self._members if m.worker is not None and m.health.state in (Health.HEALTHY, Health.STALE)]
        answers = await asyncio.gather(*(worker.memory() for worker in living), return_exceptions=True)
        return {name: size for answer in answers if isinstance(answer, Mapping) for name, size in answer.items()}

    @property
    def restarts(self) -> int:
        return sum(member.health.restarts for member in self._members)

    async def _bring_up(self, member: _Member) -> None:
        member.worker = await self._spawn(member.name)
        member.health = member.health.after(Event.STARTED)
        member.tokens_seen, member.progress_at = -1, self._clock()
        if self._fixed_weights:  # it loaded the policy itself: nothing to pull, nothing to prove
            member.health = member.health.after(Event.SYNCED, version=0)
            member.verified.set()

    # ----------------------------------------------------------------------------------------------- weight sync

    async def sync(self, published: PublishedWeights) -> FleetSync:
        """Pull and verify a version on every living worker. A worker that fails is lost, and healed in the background."""
        async with self._sync_lock:
            self._published = published
            living = [m for m in self._members if m.health.state in (Health.STALE, Health.HEALTHY, Health.SUSPECT)]
            results = await asyncio.gather(*(self._pull_or_lose(member, published) for member in living))
        self._drain_backlog()
        proofs = [result for result in results if result is not None]
        return FleetSync(tuple(receipt for receipt, _ in proofs), max((difference for _, difference in proofs), default=0.0))

    async def _pull_or_lose(self, member: _Member, published: PublishedWeights) -> tuple[WeightReceipt, float] | None:
        incarnation = member.health.restarts
        try:
            return await self._pull(member, published)
        except WorkerFailure as failure:
            if member.health.restarts == incarnation:
                self._lost(member, failure)
            return None

    async def _pull(self, member: _Member, published: PublishedWeights) -> tuple[WeightReceipt, float]:
        """Raises WorkerFailure when the receipt does not verify, or when the worker was lost while it pulled."""
        assert member.worker is not None
        incarnation = member.health.restarts
        member.verified.clear()
        try:
            receipt = await member.worker.pull_weights(published)
            difference = verify_receipt(published, receipt, self._tolerance) if self._tolerance else 0.0
            if member.health.restarts != incarnation or member.health.state in (Health.DEAD, Health.RETIRED):
                # The answer of one incarnation must not make the next one trusted.
                raise WorkerFailure(member.name, f"was lost while it pulled policy version {published.manifest.version}")
            member.health = member.health.after(Event.SYNCED, version=receipt.version)
        finally:
            member.verified.set()  # whoever waits for the proof looks at the state next
        member.progress_at = self._clock()
        return receipt, difference

    # ------------------------------------------------------------------------------------------------ generation

    async def generate(self, requests: Sequence[RolloutRequest], sampling: SamplingSettings) -> AsyncIterator[Trajectory]:
        """Yield one trajectory for each request, in the order in which they finish, whatever happens to workers.

        Raises FleetExhausted when no worker is left that could be restarted.
        """
        sink: asyncio.Queue[Trajectory | Exception] = asyncio.Queue()
        self._backlog.extend(_Pending(request, sampling, sink) for request in requests)
        self._drain_backlog()
        for _ in requests:
            item = await sink.get()
            if isinstance(item, Exception):
                raise item
            yield item

    def _drain_backlog(self) -> None:
        """Share the backlog among the workers that take work, each request to the least loaded one."""
        able = [member for member in self._members if member.health.takes_work]
        if not able:
            self._fail_backlog_if_nobody_is_left()
            return
        batches: dict[str, list[_Pending]] = {member.name: [] for member in able}
        while self._backlog:
            member = min(able, key=lambda m: m.in_flight)
            member.in_flight += 1
            batches[member.name].append(self._backlog.popleft())
        for member in able:
            for batch in _by_sampling(batches[member.name]):
                self._run(self._serve(member, batch))

    async def _serve(self, member: _Member, batch: list[_Pending]) -> None:
        outstanding = {pending.request.request_id: pending for pending in batch}
        incarnation = member.health.restarts
        try:
            async for trajectory in self._watched(member, [p.request for p in batch], batch[0].sampling):
                await member.verified.wait()
                if member.health.state in (Health.DEAD, Health.RETIRED) or member.health.restarts != incarnation:
                    raise WorkerFailure(member.name, "was lost while it generated; what it still delivers is not trusted")
                outstanding.pop(trajectory.request_id).sink.put_nowait(trajectory)
                member.in_flight -= 1
                member.finished += 1
            if outstanding:
                raise WorkerFailure(member.name, f"its stream ended with {len(outstanding)} of {len(batch)} responses missing")
        except WorkerFailure as failure:
            if member.health.restarts == incarnation:
                self._lost(member, failure)
            self._backlog.extendleft(reversed(outstanding.values()))
            self._drain_backlog()
        except Exception as error:  # boundary: a bug or a bad request crosses to the caller through its queue
            for pending in outstanding.values():
                pending.sink.put_nowait(error)

    async def _watched(
        self, member: _Member, requests: list[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[Trajectory]:
        """The worker's stream; raises WorkerTimeout when the engine makes no token for stall_timeout_s."""
        assert member.worker is not None
        stream = aiter(member.worker.generate(requests, sampling))
        while True:
            arrival = asyncio.ensure_future(anext(stream))
            try:
                while not (await asyncio.wait({arrival}, timeout=self._settings.stall_timeout_s))[0]:
                    await self._require_progress(member)
                trajectory = arrival.result()
            except StopAsyncIteration:
                return
            finally:
                arrival.cancel()
            member.progress_at = self._clock()
            yield trajectory

    async def _require_progress(self, member: _Member) -> None:
        assert member.worker is not None
        if member.health.state is Health.HEALTHY:
            member.health = member.health.after(Event.SUSPECTED)
        tokens = int((await member.worker.ping())["tokens_generated"])
        now = self._clock()
        if tokens != member.tokens_seen:
            member.tokens_seen, member.progress_at = tokens, now
        elif now - member.progress_at >= self._settings.stall_timeout_s:
            raise WorkerTimeout(
                member.name, f"answers pings but made no token for {now - member.progress_at:.0f} s: engine wedged"
            )
        if member.health.state is Health.SUSPECT:
            member.health = member.health.after(Event.RECOVERED)
            self._drain_backlog()  # what was asked meanwhile may wait for this worker alone

    # --------------------------------------------------------------------------------------------------- healing

    def _lost(self, member: _Member, failure: WorkerFailure) -> None:
        """Book a death. The member's one revival task brings it back, or takes the news if it is at it already."""
        if member.health.state in (Health.DEAD, Health.RETIRED):
            return
        self._on_event("worker-lost", str(failure))
        member.health = member.health.after(Event.DIED)
        member.in_flight = 0
        member.last_failure = str(failure)
        if not member.reviving:
            member.reviving = True
            self._run(self._revive(member))

    async def _revive(self, member: _Member) -> None:
        try:
            while member.health.restarts < self._settings.max_restarts:
                if await self._restart(member):
                    version, restarts = member.health.version, member.health.restarts
                    self._on_event("worker-revived", f"{member.name}: serves version {version} after restart {restarts}")
                    return
            await self._retire(member)
        finally:
            member.reviving = False
            self._drain_backlog()

    async def _restart(self, member: _Member) -> bool:
        """One try: whether the member serves the published version in the end."""
        if member.worker is not None:
            await member.worker.close()
        await asyncio.sleep(restart_delay_s(member.health.restarts))
        member.health = member.health.after(Event.RESTART)
        try:
            await self._bring_up(member)
            async with self._sync_lock:
                if member.health.state is Health.STALE and self._published is not None:
                    await self._pull(member, self._published)
        except Exception as error:  # boundary: whatever keeps a worker from starting is a failed restart, not a failed run
            failure = error if isinstance(error, WorkerFailure) else WorkerFailure(member.name, f"did not restart: {error}")
            self._lost(member, failure)
        return member.health.takes_work

    async def _retire(self, member: _Member) -> None:
        used_up = f"{self._settings.max_restarts} restarts used up"
        self._on_event("worker-retired", f"{member.name}: {used_up} (last: {member.last_failure})")
        member.health = member.health.after(Event.RETIRE)
        if member.worker is not None:
            await member.worker.close()

    def _fail_backlog_if_nobody_is_left(self) -> None:
        if any(member.health.state is not Health.RETIRED for member in self._members):
            return
        error = FleetExhausted(
            "rollout fleet", f"no worker is left after {self.restarts} restarts; see events.jsonl for each worker's failures"
        )
        while self._backlog:
            self._backlog.popleft().sink.put_nowait(error)

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _by_sampling(batch: Iterable[_Pending]) -> list[list[_Pending]]:
    groups: dict[SamplingSettings, list[_Pending]] = {}
    for pending in batch:
        groups.setdefault(pending.sampling, []).append(pending)
    return list(groups.values())
