"""The rollout fleet: hands requests to engines, heals dead engines, and lets each request reach its caller once.

    generate(requests) --least loaded--> _serve(member, batch) --stream--> caller's queue
                            ^                    | worker died or wedged
                            |                    v
                         backlog <--unfinished-- lost --back-off--> _revive: spawn, pull, verify --> HEALTHY
                            ^
                            '--what is left after the grace time-- _drain <-- scale(n) --> _join: reserve, spawn, pull, verify

A request is in exactly one place: a backlog, or one member's batch. It leaves by its trajectory or by an error.
Frozen and wedged workers are found by `fleet_watch.py`; whatever waits for an answer of theirs gives up at once then.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from sppo_ray.config import RolloutSettings
from sppo_ray.trainer.autoscale import require_within_bounds
from sppo_ray.trainer.fleet_members import Asked, FleetSync, Member, PendingView, Places, WorkerView, by_sampling, least_needed
from sppo_ray.trainer.fleet_watch import FleetWatch
from sppo_ray.trainer.health import Event, Health, RestartBudget, Vitals, WorkerHealth, restart_delay_s
from sppo_ray.trainer.interfaces import FleetExhausted, PublishedWeights, RolloutWorker, WeightReceipt, WorkerFailure
from sppo_ray.trainer.weight_sync import ProbeTolerance, verify_receipt
from sppo_ray.types import RolloutRequest, SamplingSettings, Trajectory

Spawn = Callable[[str], Awaitable[RolloutWorker]]
OnEvent = Callable[[str, str], None]  # (kind, message)
PENDING_NOTICE_S = 5.0  # a worker that waits longer for its place is worth an event


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
        places: Places | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With `fixed_weights` the engines serve what they were started with, and nothing is ever synced.

        `places` are asked for added workers and told of those that left; None = wherever `spawn` puts them.
        """
        self._spawn = spawn
        self._settings = settings
        self._tolerance = tolerance  # None: receipts are not compared
        self._on_event = on_event
        self._fixed_weights = fixed_weights
        self._clock = clock
        self._places = places
        self._members = [self._member(index) for index in range(settings.workers)]
        self._next_index = settings.workers  # a name is never given twice in a run
        self._wanted = settings.workers
        self._restarts_of_drained = 0
        self._backlog: deque[Asked] = deque()
        self._published: PublishedWeights | None = None
        self._epoch = 0  # grows when everything that was asked is abandoned
        self._sync_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._watch = FleetWatch(self, lambda: list(self._members), settings, clock)

    # ------------------------------------------------------------------------------------------------ life cycle

    async def start(self) -> None:
        """Bring up all workers. One that dies on the way is healed in the background, while the others serve.

        Raises UserError when an engine cannot be started as it is configured.
        """
        self._run(self._watch.run())
        await asyncio.gather(*(self._bring_up_or_lose(member) for member in self._members))

    def _member(self, index: int, **fields: Any) -> Member:
        return Member(f"rollout-{index}", RestartBudget(self._settings.restart_window_s), **fields)

    async def _bring_up_or_lose(self, member: Member) -> None:
        try:
            await self._bring_up(member)
        except WorkerFailure as failure:
            self.lost(member, failure)

    async def close(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(m.worker.close() for m in self._members if m.worker is not None), return_exceptions=True)

    def view(self) -> list[WorkerView]:
        now = self._clock()
        return [member.view(now) for member in self._members]

    def pending(self) -> list[PendingView]:
        """Workers that were asked for and that the cluster has no room for yet."""
        waiting = [member for member in self._members if member.health.state is Health.PENDING]
        needs = self._places.needs if self._places else ""
        return [PendingView(member.name, needs, member.pending_since) for member in waiting]

    @property
    def wanted(self) -> int:
        """How many workers the fleet was last asked to have."""
        return self._wanted

    @property
    def is_settled(self) -> bool:
        """Whether nobody is coming or going."""
        at_rest = (Health.HEALTHY, Health.SUSPECT, Health.RETIRED)
        return all(member.health.state in at_rest and not member.is_leaving for member in self._members)

    async def memory(self) -> dict[str, int]:
        """Peak bytes of each living worker that answers."""
        living = [member.worker for member in self._members if member.worker is not None and member.health.holds_weights]
        answers = await asyncio.gather(*(worker.memory() for worker in living), return_exceptions=True)
        return {name: size for answer in answers if isinstance(answer, Mapping) for name, size in answer.items()}

    @property
    def restarts(self) -> int:
        return self._restarts_of_drained + sum(member.health.restarts for member in self._members)

    async def _bring_up(self, member: Member) -> None:
        member.worker = await self._spawn(member.name)
        member.health = member.health.after(Event.STARTED)
        member.vitals = Vitals.starting(self._clock())
        member.lost = asyncio.Event()
        member.verified.set()  # it has delivered nothing yet
        if self._fixed_weights:  # it loaded the policy itself: nothing to pull, nothing to prove
            member.health = member.health.after(Event.SYNCED, version=0)

    # ----------------------------------------------------------------------------------------------- weight sync

    async def sync(self, published: PublishedWeights) -> FleetSync:
        """Pull and verify a version on every living worker. A worker that fails is lost, and healed in the background."""
        async with self._sync_lock:
            self._published = published
            living = [member for member in self._members if member.health.holds_weights]
            results = await asyncio.gather(*(self._pull_or_lose(member, published) for member in living))
        self._hand_out()
        proofs = [result for result in results if result is not None]
        return FleetSync(tuple(receipt for receipt, _ in proofs), max((difference for _, difference in proofs), default=0.0))

    async def _pull_or_lose(self, member: Member, published: PublishedWeights) -> tuple[WeightReceipt, float] | None:
        incarnation = member.health.restarts
        try:
            return await self._pull(member, published)
        except WorkerFailure as failure:
            self.lost(member, failure, incarnation)
            return None

    async def _pull(self, member: Member, published: PublishedWeights) -> tuple[WeightReceipt, float]:
        """Raises WorkerFailure when the receipt does not verify, or when the worker was lost while it pulled."""
        assert member.worker is not None
        incarnation = member.health.restarts
        member.verified.clear()
        try:
            receipt = await member.unless_lost(member.worker.pull_weights(published))
            difference = verify_receipt(published, receipt, self._tolerance) if self._tolerance else 0.0
            if member.health.restarts != incarnation or member.health.is_gone:
                # The answer of one incarnation must not make the next one trusted.
                raise WorkerFailure(member.name, f"was lost while it pulled policy version {published.manifest.version}")
            if published is self._published:  # else it was abandoned meanwhile: the worker stays STALE
                member.health = member.health.after(Event.SYNCED, version=receipt.version)
        finally:
            member.verified.set()  # whoever waits for the proof looks at the state next
        member.vitals.progressed(self._clock())
        return receipt, difference

    # ------------------------------------------------------------------------------------------------ generation

    async def generate(self, requests: Sequence[RolloutRequest], sampling: SamplingSettings) -> AsyncIterator[Trajectory]:
        """Yield one trajectory for each request, in the order in which they finish, whatever happens to workers.

        Raises FleetExhausted when no worker is left that could be restarted.
        """
        sink: asyncio.Queue[Trajectory | Exception] = asyncio.Queue()
        self._backlog.extend(Asked(request, sampling, sink, self._epoch) for request in requests)
        self._hand_out()
        for _ in requests:
            item = await sink.get()
            if isinstance(item, Exception):
                raise item
            yield item

    def _hand_out(self) -> None:
        """Share the backlog among the workers that take work, each request to the least loaded one."""
        if self._closed:
            return
        able = [member for member in self._members if member.health.takes_work]
        if not able:
            self._fail_backlog_if_nobody_is_left()
            return
        batches: dict[str, list[Asked]] = {member.name: [] for member in able}
        while self._backlog:
            member = min(able, key=lambda m: m.in_flight)
            if member.in_flight == 0:
                member.vitals.progressed(self._clock())
            member.book(1, self._clock())
            batches[member.name].append(self._backlog.popleft())
        for member in able:
            for batch in by_sampling(batches[member.name]):
                task = self._run(self._serve(member, batch))
                member.serving.add(task)
                task.add_done_callback(member.serving.discard)

    async def _serve(self, member: Member, batch: list[Asked]) -> None:
        outstanding = {pending.request.request_id: pending for pending in batch}
        incarnation = member.health.restarts
        try:
            async for trajectory in self._watched(member, [p.request for p in batch], batch[0].sampling):
                await member.verified.wait()
                if member.health.is_gone or member.health.restarts != incarnation:
                    raise WorkerFailure(member.name, "was lost while it generated; what it still delivers is not trusted")
                outstanding.pop(trajectory.request_id).sink.put_nowait(trajectory)
                member.book(-1, self._clock())
                member.finished += 1
            if outstanding and batch[0].epoch != self._epoch:
                member.book(-len(outstanding), self._clock())
            elif outstanding:
                raise WorkerFailure(member.name, f"its stream ended with {len(outstanding)} of {len(batch)} responses missing")
        except WorkerFailure as failure:
            self.lost(member, failure, incarnation)
            self._take_back(outstanding.values())
        except asyncio.CancelledError:
            if member.health.state is Health.RETIRED:  # it was drained and its grace time is over
                self._take_back(outstanding.values())
            raise
        except Exception as error:  # boundary: a bug or a bad request crosses to the caller through its queue
            if member.health.restarts == incarnation and not member.health.is_gone:
                member.book(-len(outstanding), self._clock())
            for pending in outstanding.values():
                pending.sink.put_nowait(error)

    def _take_back(self, unfinished: Iterable[Asked]) -> None:
        self._backlog.extendleft(asked for asked in reversed(list(unfinished)) if asked.epoch == self._epoch)
        self._hand_out()

    async def _watched(
        self, member: Member, requests: list[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[Trajectory]:
        """The worker's stream; raises WorkerFailure as soon as the worker is lost, whoever found that out."""
        assert member.worker is not None
        stream = aiter(member.worker.generate(requests, sampling))
        while (trajectory := await member.unless_lost(anext(stream, None))) is not None:
            member.vitals.progressed(self._clock())
            yield trajectory

    # --------------------------------------------------------------------------------------------------- healing

    def suspected(self, member: Member) -> None:
        """It keeps what it has and gets no more."""
        if member.health.state is Health.HEALTHY:
            member.health = member.health.after(Event.SUSPECTED)

    def recovered(self, member: Member) -> None:
        if member.health.state is Health.SUSPECT:
            member.health = member.health.after(Event.RECOVERED)
            self._hand_out()  # what was asked meanwhile may wait for this worker alone

    def lost(self, member: Member, failure: WorkerFailure, incarnation: int | None = None) -> None:
        """Book a death. The one task that starts the member brings it back, or takes the news if it is at it already.

        `incarnation`: the restarts of the member that failed, when it may be a later one by now.
        """
        if member.health.is_gone or incarnation not in (None, member.health.restarts):
            return
        self._on_event("worker-lost", str(failure))
        member.health = member.health.after(Event.DIED)
        member.book(-member.in_flight, self._clock())
        member.last_failure = str(failure)
        member.lost.set()
        if member.health.state is Health.DEAD and not member.is_starting:
            member.starting = self._run(self._revive(member))

    def distrust(self, failure: WorkerFailure) -> None:
        """Give up the worker that `failure` names, although it answers: a new process takes its place."""
        for member in [member for member in self._members if member.name == failure.worker]:
            self.lost(member, failure)

    async def _revive(self, member: Member) -> None:
        try:
            while member.budget.spent(self._clock()) < self._settings.max_restarts:
                if await self._restart(member):
                    self._on_event("worker-revived", f"{member.name}: {member.serves} after restart {member.health.restarts}")
                    return
            used_up = f"{self._settings.max_restarts} restarts in {self._settings.restart_window_s:.0f} s used up"
            await self._retire(member, f"{used_up} (last: {member.last_failure})")
        finally:
            self._hand_out()

    async def _restart(self, member: Member) -> bool:
        """One try: whether the member serves the published version in the end."""
        if member.worker is not None:
            await member.worker.close()
        await asyncio.sleep(restart_delay_s(member.budget.spent(self._clock())))
        member.budget.spend(self._clock())
        member.health = member.health.after(Event.RESTART)
        return await self._start(member)

    async def _start(self, member: Member) -> bool:
        """Bring a member up and let it prove the published version. A failure is booked as its death."""
        try:
            await self._bring_up(member)
            async with self._sync_lock:
                if member.health.state is Health.STALE and self._published is not None:
                    await self._pull(member, self._published)
        except Exception as error:  # boundary: whatever keeps a worker from starting is a failed restart, not a failed run
            failure = error if isinstance(error, WorkerFailure) else WorkerFailure(member.name, f"did not start: {error}")
            self.lost(member, failure)
        return not member.health.is_gone

    async def abandon(self) -> None:
        """Forget every request and the published version: the run goes back to a checkpoint.

        Living workers are STALE until the next `sync`. One that does not give up its requests is lost, and healed.
        """
        self._epoch += 1
        self._published = None
        self._backlog.clear()
        await asyncio.gather(*(self._outdate(member) for member in self._members if member.health.holds_weights))

    async def _outdate(self, member: Member) -> None:
        incarnation = member.health.restarts
        try:
            await member.outdate()
        except WorkerFailure as failure:
            self.lost(member, failure, incarnation)

    async def _retire(self, member: Member, why: str) -> None:
        self._on_event("worker-retired", f"{member.name}: {why}")
        member.health = member.health.after(Event.RETIRE)
        await self._dismiss(member)

    async def _dismiss(self, member: Member) -> None:
        if member.worker is not None:
            await member.worker.close()
        if self._places is not None:
            self._places.release(member.name)

    # --------------------------------------------------------------------------------------------------- scaling

    def scale(self, wanted: int) -> str:
        """Ask for so many workers and return what that begins; added ones come up, others drain in the background.

        Raises UserError for a number outside rollout.min_workers and rollout.max_workers.
        """
        require_within_bounds(wanted, self._settings)
        active = [m for m in self._members if m.health.state not in (Health.DRAINING, Health.RETIRED)]
        leaving = least_needed(active)[: max(0, len(active) - wanted)]
        joining = [self._add() for _ in range(wanted - len(active))]
        for member in leaving:
            self._take_out(member)
        self._wanted = wanted
        changes = [f"adds {member.name}" for member in joining] + [f"drains {member.name}" for member in leaving]
        return f"{len(active)} -> {wanted} rollout workers: {', '.join(changes) or 'nothing to do'}"

    def replenish(self) -> None:
        """When the restarts of all are used up: new workers in their places, with restarts of their own."""
        if any(member.health.state is not Health.RETIRED for member in self._members):
            return
        self._restarts_of_drained += sum(member.health.restarts for member in self._members)
        self._members.clear()
        for _ in range(self._wanted):
            self._add()

    def _add(self) -> Member:
        member = self._member(self._next_index, health=WorkerHealth(Health.PENDING), pending_since=time.time())
        self._next_index += 1
        self._members.append(member)
        member.starting = self._run(self._join(member))
        return member

    async def _join(self, member: Member) -> None:
        try:
            await self._reserve(member)
        except Exception as error:  # boundary: a worker more that the cluster refuses is no reason to end the run
            await self._retire(member, f"got no place: {error}")
            return
        member.health = member.health.after(Event.PLACED)
        if not await self._start(member):
            await self._revive(member)
            return
        self._on_event("worker-added", f"{member.name}: {member.serves}")
        self._hand_out()

    async def _reserve(self, member: Member) -> None:
        if self._places is None:
            return
        text = f"{member.name}: the cluster has no room for {self._places.needs} yet; the run goes on without it"
        notice = asyncio.get_running_loop().call_later(PENDING_NOTICE_S, self._on_event, "worker-pending", text)
        try:
            await self._places.reserve(member.name)
        finally:
            notice.cancel()

    def _take_out(self, member: Member) -> None:
        member.is_leaving = True
        if member.health.state in (Health.HEALTHY, Health.SUSPECT):
            member.health = member.health.after(Event.DRAIN)
            self._on_event("worker-draining", f"{member.name}: finishes {member.in_flight} responses and takes no more")
            self._run(self._drain(member))
            return
        if member.starting is not None:
            member.starting.cancel()
        member.health = member.health.after(Event.RETIRE)
        self._run(self._remove(member))

    async def _drain(self, member: Member) -> None:
        if member.serving:
            await asyncio.wait(set(member.serving), timeout=self._settings.drain_grace_s)
        await self._remove(member)

    async def _remove(self, member: Member) -> None:
        """Take a member off the list. Whatever it did not finish is in the backlog then."""
        handed_back = member.in_flight
        member.health = member.health.after(Event.RETIRE)
        tasks = list(member.serving) + ([member.starting] if member.starting is not None else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._members.remove(member)
        self._restarts_of_drained += member.health.restarts
        await self._dismiss(member)
        self._on_event("worker-drained", f"{member.name}: finished {member.finished} responses, handed back {handed_back}")
        self._hand_out()

    def _fail_backlog_if_nobody_is_left(self) -> None:
        if any(member.health.state not in (Health.DRAINING, Health.RETIRED) for member in self._members):
            return
        causes = "; ".join(member.last_failure for member in self._members if member.last_failure)
        error = FleetExhausted("rollout fleet", f"no worker is left after {self.restarts} restarts ({causes})")
        while self._backlog:
            self._backlog.popleft().sink.put_nowait(error)

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
