"""The rollout fleet: starts, restarts, adds and drains rollout workers.

    a worker is lost --back-off--> _revive: spawn, pull, verify --> HEALTHY --> gets work
    scale(n), more   --> _join: reserve a place, spawn, pull, verify --> HEALTHY --> gets work
    scale(n), fewer  --> _drain: wait the grace time --> unfinished requests return to the backlog

`dispatch.py` holds the requests and `fleet_weights.py` the weights. `liveness.py` finds frozen and
stuck workers; all calls that wait for such a worker then fail at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from sppo_ray.config import RolloutSettings
from sppo_ray.protocols import PublishedWeights, RolloutWorker, WorkerFailure
from sppo_ray.rollout.autoscale import require_within_bounds
from sppo_ray.rollout.dispatch import Dispatcher
from sppo_ray.rollout.fleet_weights import FleetWeights
from sppo_ray.rollout.health import Event, Health, Vitals, WorkerHealth, restart_delay_s
from sppo_ray.rollout.liveness import LivenessMonitor
from sppo_ray.rollout.member import Member, PlacementPool, least_needed
from sppo_ray.rollout.roster import Roster
from sppo_ray.rollout.tasks import end_tasks
from sppo_ray.rollout.views import FleetSync, PendingView, WorkerView
from sppo_ray.rollout.weight_sync import ProbeTolerance
from sppo_ray.types import RolloutRequest, SamplingSettings, Trajectory

Spawn = Callable[[str], Awaitable[RolloutWorker]]
OnEvent = Callable[[str, str], None]  # (kind, message)
PENDING_NOTICE_S = 5.0  # a worker that waits longer for its place causes an event


class RolloutFleet:
    """Rollout workers behind the interface of one engine. `spawn(name)` starts an unsynced
    worker.
    """

    def __init__(
        self,
        spawn: Spawn,
        *,
        settings: RolloutSettings,
        tolerance: ProbeTolerance | None,
        on_event: OnEvent,
        fixed_weights: bool = False,
        places: PlacementPool | None = None,
        starting: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With `fixed_weights` the engines serve their initial weights and are never synced.

        `places` reserves the places of added workers and releases those of removed workers. None =
        `spawn` chooses the place. A restart and the load of its weights run inside `starting()`,
        which waits until the worker may take memory.
        """
        self._spawn = spawn
        self._settings = settings
        self._on_event = on_event
        self._fixed_weights = fixed_weights
        self._clock = clock
        self._places = places
        self._starting = starting
        self._roster = Roster(settings, clock)
        self._requests = Dispatcher(self._roster, self.lost, clock)
        self._weights = FleetWeights(
            self._roster,
            self.lost,
            tolerance=tolerance,
            on_notice=lambda text: on_event("weights-flat", text),
            clock=clock,
        )
        self._monitor = LivenessMonitor(self._roster.living, self, settings, clock)
        self._tasks: set[asyncio.Task[None]] = set()

    # ----------------------------------------------------------------------------------- life cycle

    async def start(self) -> None:
        """Start all workers. A worker that dies meanwhile is restarted in the background.

        Raises UserError when an engine cannot start with its configuration.
        """
        self._run(self._monitor.run())
        await asyncio.gather(*(self._bring_up_or_lose(member) for member in self._roster.members))

    async def _bring_up_or_lose(self, member: Member) -> None:
        try:
            await self._bring_up(member)
        except WorkerFailure as failure:
            self.lost(member, failure)

    async def _bring_up(self, member: Member) -> None:
        member.worker = await self._spawn(member.name)
        member.health = member.health.after(Event.STARTED)
        member.vitals = Vitals.starting(self._clock())
        member.lost = asyncio.Event()
        member.waits_for_version = False
        member.verified.set()  # no pull is in progress
        if self._fixed_weights:  # it loaded the policy itself, so no sync is needed
            member.health = member.health.after(Event.SYNCED, version=0)

    async def close(self) -> None:
        self._requests.close()
        members = self._roster.members
        await end_tasks([*self._tasks, *(task for member in members for task in member.serving)])
        await asyncio.gather(
            *(m.worker.close() for m in members if m.worker is not None), return_exceptions=True
        )

    def view(self) -> list[WorkerView]:
        return self._roster.view()

    def pending(self) -> list[PendingView]:
        """Return the added workers that the cluster has no room for yet."""
        return self._roster.pending(self._places.needs if self._places else "")

    @property
    def wanted(self) -> int:
        """The target number of workers."""
        return self._roster.wanted

    @property
    def is_settled(self) -> bool:
        """Whether no worker is starting or draining."""
        return self._roster.is_settled

    @property
    def restarts(self) -> int:
        return self._roster.restarts

    async def memory(self) -> dict[str, int]:
        """Return the peak bytes of each living worker that answers."""
        living = [member.worker for member in self._roster.living() if member.worker is not None]
        answers = await asyncio.gather(*(worker.memory() for worker in living), return_exceptions=True)
        return {
            name: size for answer in answers if isinstance(answer, Mapping) for name, size in answer.items()
        }

    # ---------------------------------------------------------------------------------------- work

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[Sequence[Trajectory]]:
        """Yield one trajectory per request, in bursts, in the order in which they finish.

        Raises FleetExhausted when all workers have used up their restarts.
        """
        return self._requests.generate(requests, sampling)

    async def sync(self, published: PublishedWeights) -> FleetSync:
        """Load and verify a version on every living worker. A worker that fails is restarted in the
        background.
        """
        proofs = await self._weights.sync(published)
        self._requests.hand_out()
        return proofs

    async def sleep(self) -> None:
        """Free the devices of all living workers; they are STALE until the next `sync`. A worker
        that fails is restarted.
        """
        await asyncio.gather(*(self._put_to_sleep(member) for member in self._roster.living()))

    async def _put_to_sleep(self, member: Member) -> None:
        incarnation = member.incarnation
        try:
            await member.outdate()
            assert member.worker is not None
            await member.unless_lost(member.worker.sleep())
        except WorkerFailure as failure:
            self.lost(member, failure, incarnation)

    async def abandon(self) -> None:
        """Drop all requests and the published version, because the run returns to a checkpoint.

        Living workers are STALE until the next `sync`. A worker that does not drop its requests is
        restarted.
        """
        self._requests.abandon()
        self._weights.forget()
        await asyncio.gather(*(self._outdate(member) for member in self._roster.living()))

    async def _outdate(self, member: Member) -> None:
        incarnation = member.incarnation
        try:
            await member.outdate()
        except WorkerFailure as failure:
            self.lost(member, failure, incarnation)

    # ------------------------------------------------------------------------------------- restarts

    def suspected(self, member: Member) -> None:
        """Send no more requests to the member; it keeps those that it has."""
        if member.health.state is Health.HEALTHY:
            member.health = member.health.after(Event.SUSPECTED)

    def recovered(self, member: Member) -> None:
        if member.health.state is Health.SUSPECT:
            member.health = member.health.after(Event.RECOVERED)
            self._requests.hand_out()  # the backlog may have waited for this worker

    def lost(self, member: Member, failure: WorkerFailure, incarnation: int | None = None) -> None:
        """Mark a member as lost, and restart it unless a task is already starting it.

        `incarnation`: the incarnation that failed. The call has no effect when the member has been
        restarted since. None = the current one.
        """
        if member.health.is_gone or incarnation not in (None, member.incarnation):
            return
        self._on_event("worker-lost", str(failure))
        member.health = member.health.after(Event.DIED)
        member.book(-member.in_flight, self._clock())
        member.last_failure = str(failure)
        member.lost.set()
        if member.health.state is Health.DEAD and not member.is_starting:
            member.starting = self._run(self._revive(member))

    def mark_failed(self, failure: WorkerFailure) -> None:
        """Replace the process of the worker that `failure` names, although it still answers."""
        for member in [member for member in self._roster.members if member.name == failure.worker]:
            self.lost(member, failure)

    async def _revive(self, member: Member) -> None:
        try:
            while member.budget.spent(self._clock()) < self._settings.max_restarts:
                if await self._restart(member):
                    self._on_event(
                        "worker-revived",
                        f"{member.name}: {member.serves} after restart {member.health.restarts}",
                    )
                    return
            used_up = (
                f"{self._settings.max_restarts} restarts in {self._settings.restart_window_s:.0f} s used up"
            )
            await self._retire(member, f"{used_up} (last: {member.last_failure})")
        finally:
            self._requests.hand_out()

    async def _restart(self, member: Member) -> bool:
        """Try to restart the member once; return whether it serves the published version."""
        if member.worker is not None:
            await member.worker.close()
        await asyncio.sleep(restart_delay_s(member.budget.spent(self._clock())))
        member.budget.spend(self._clock())
        member.health = member.health.after(Event.RESTART)
        return await self._start(member)

    async def _start(self, member: Member) -> bool:
        """Start a member and load the published version; return whether that succeeded."""
        try:
            async with self._starting():
                await self._bring_up(member)
                await self._weights.catch_up(member)
        except Exception as error:  # boundary
            # an error at the start of a worker must not end the run
            failure = (
                error
                if isinstance(error, WorkerFailure)
                else WorkerFailure(member.name, f"did not start: {error}")
            )
            self.lost(member, failure)
        return not member.health.is_gone

    async def _retire(self, member: Member, why: str) -> None:
        self._on_event("worker-retired", f"{member.name}: {why}")
        member.health = member.health.after(Event.RETIRE)
        await self._dismiss(member)

    async def _dismiss(self, member: Member) -> None:
        if member.worker is not None:
            await member.worker.close()
        if self._places is not None:
            self._places.release(member.name)

    # -------------------------------------------------------------------------------------- scaling

    def scale(self, wanted: int) -> str:
        """Set the number of workers and return a description of the changes.

        Workers start and drain in the background. Raises UserError for a number outside
        rollout.min_workers and rollout.max_workers.
        """
        require_within_bounds(wanted, self._settings)
        active = self._roster.active
        leaving = least_needed(active)[: max(0, len(active) - wanted)]
        joining = [self._add() for _ in range(wanted - len(active))]
        for member in leaving:
            self._take_out(member)
        self._roster.wanted = wanted
        changes = [f"adds {member.name}" for member in joining] + [
            f"drains {member.name}" for member in leaving
        ]
        return f"{len(active)} -> {wanted} rollout workers: {', '.join(changes) or 'nothing to do'}"

    def replenish(self) -> None:
        """Replace all workers by new ones if all of them have used up their restarts."""
        members = list(self._roster.members)
        if any(member.health.state is not Health.RETIRED for member in members):
            return
        for member in members:
            self._roster.remove(member)
        for _ in range(self.wanted):
            self._add()

    def _add(self) -> Member:
        member = self._roster.add(health=WorkerHealth(Health.PENDING), pending_since=time.time())
        member.starting = self._run(self._join(member))
        return member

    async def _join(self, member: Member) -> None:
        try:
            await self._reserve(member)
        except Exception as error:  # boundary
            # the run continues without a worker that cannot be placed
            await self._retire(member, f"got no place: {error}")
            return
        member.health = member.health.after(Event.PLACED)
        if not await self._start(member):
            await self._revive(member)
            return
        self._on_event("worker-added", f"{member.name}: {member.serves}")
        self._requests.hand_out()

    async def _reserve(self, member: Member) -> None:
        if self._places is None:
            return
        text = (
            f"{member.name}: the cluster has no room for {self._places.needs} yet; the run goes on without it"
        )
        notice = asyncio.get_running_loop().call_later(
            PENDING_NOTICE_S, self._on_event, "worker-pending", text
        )
        try:
            await self._places.reserve(member.name)
        finally:
            notice.cancel()

    def _take_out(self, member: Member) -> None:
        member.is_leaving = True
        if member.health.state in (Health.HEALTHY, Health.SUSPECT):
            member.health = member.health.after(Event.DRAIN)
            self._on_event(
                "worker-draining", f"{member.name}: finishes {member.in_flight} responses and takes no more"
            )
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
        """Remove a member. Its unfinished requests return to the backlog."""
        handed_back = member.in_flight
        member.health = member.health.after(Event.RETIRE)
        await end_tasks([*member.serving, *([member.starting] if member.starting is not None else [])])
        self._roster.remove(member)
        await self._dismiss(member)
        self._on_event(
            "worker-drained", f"{member.name}: finished {member.finished} responses, returned {handed_back}"
        )
        self._requests.hand_out()

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
