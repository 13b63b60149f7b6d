"""Dispatches requests to the workers of a fleet and delivers each trajectory once.

    generate(requests) --> backlog --least loaded--> _serve(member, batch) --stream--> caller's queue
                              ^                              | worker lost, or drained
                              '-------- unfinished ----------'

Every unfinished request is either in the backlog or in one member's batch. It ends with its
trajectory or with an error.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from sppo_ray.protocols import FleetExhausted, WorkerFailure
from sppo_ray.rollout.health import Health
from sppo_ray.rollout.member import Member, OnLost, PendingRequest, Sink, by_sampling
from sppo_ray.rollout.roster import Roster
from sppo_ray.types import RequestId, RolloutRequest, SamplingSettings, Trajectory


class Dispatcher:
    """Holds the requests of a fleet. `on_lost` is called for a worker that failed."""

    def __init__(self, roster: Roster, on_lost: OnLost, clock: Callable[[], float]) -> None:
        self._roster = roster
        self._on_lost = on_lost
        self._clock = clock
        self.backlog: deque[PendingRequest] = deque()
        self._epoch = 0  # incremented when all requests are abandoned
        self._closed = False

    async def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[Sequence[Trajectory]]:
        """Yield one trajectory per request, in bursts, in the order in which they finish.

        Requests of lost workers are sent to other workers. Raises FleetExhausted when all workers
        have used up their restarts.
        """
        sink: Sink = asyncio.Queue()
        self.backlog.extend(PendingRequest(request, sampling, sink, self._epoch) for request in requests)
        self.hand_out()
        left = len(requests)
        while left:
            burst = await sink.get()
            if isinstance(burst, Exception):
                raise burst
            left -= len(burst)
            yield burst

    def hand_out(self) -> None:
        """Send each request of the backlog to the worker that it prefers, else to the least loaded
        one, among those that take work.
        """
        if self._closed:
            return
        able = [member for member in self._roster.members if member.health.takes_work]
        if not able:
            self._fail_backlog_if_no_worker_is_left()
            return
        for member, requests in self._shared_out(able):
            if member.in_flight == 0:
                member.vitals.progressed(self._clock())
            member.book(len(requests), self._clock())
            for batch in by_sampling(requests):
                task = asyncio.ensure_future(self._serve(member, batch))
                member.serving.add(task)
                task.add_done_callback(member.serving.discard)

    def _shared_out(self, able: Sequence[Member]) -> list[tuple[Member, list[PendingRequest]]]:
        """The backlog by the worker that each request goes to; it is empty then."""
        batches: dict[int, list[PendingRequest]] = {}
        self._to_preferred({member.name: place for place, member in enumerate(able)}, batches)
        loads = [(member.in_flight + len(batches.get(p, ())), p) for p, member in enumerate(able)]
        heapq.heapify(loads)
        while self.backlog:
            load, place = loads[0]
            heapq.heapreplace(loads, (load + 1, place))
            batches.setdefault(place, []).append(self.backlog.popleft())
        return [(able[place], batches[place]) for place in sorted(batches)]

    def _to_preferred(self, places: dict[str, int], batches: dict[int, list[PendingRequest]]) -> None:
        """Move the requests whose preferred worker is able from the backlog to its batch."""
        if not any(pending.request.prefers for pending in self.backlog):
            return
        rest = [pending for pending in self.backlog if pending.request.prefers not in places]
        for pending in self.backlog:
            if pending.request.prefers in places:
                batches.setdefault(places[pending.request.prefers], []).append(pending)
        self.backlog.clear()
        self.backlog.extend(rest)

    def abandon(self) -> None:
        """Drop all requests. Responses to them that still arrive are ignored."""
        self._epoch += 1
        self.backlog.clear()

    def close(self) -> None:
        """Stop sending requests."""
        self._closed = True

    async def _serve(self, member: Member, batch: list[PendingRequest]) -> None:
        outstanding = {pending.request.request_id: pending for pending in batch}
        incarnation = member.incarnation
        try:
            async for burst in self._watched(member, [p.request for p in batch], batch[0].sampling):
                await member.verified.wait()
                if member.health.is_gone or member.incarnation != incarnation:
                    raise WorkerFailure(
                        member.name, "was lost during generation; its later responses are not used"
                    )
                for sink, finished in _by_sink(burst, outstanding).items():
                    sink.put_nowait(finished)
                member.book(-len(burst), self._clock())
                member.finished += len(burst)
            if outstanding and batch[0].epoch != self._epoch:
                member.book(-len(outstanding), self._clock())
            elif outstanding:
                raise WorkerFailure(
                    member.name, f"its stream ended with {len(outstanding)} of {len(batch)} responses missing"
                )
        except WorkerFailure as failure:
            self._on_lost(member, failure, incarnation)
            self._take_back(outstanding.values())
        except asyncio.CancelledError:
            if member.health.state is Health.RETIRED:  # drained, and the grace time is over
                self._take_back(outstanding.values())
            raise
        except Exception as error:  # boundary: the caller's queue passes it to the caller
            if member.incarnation == incarnation and not member.health.is_gone:
                member.book(-len(outstanding), self._clock())
            for pending in outstanding.values():
                pending.sink.put_nowait(error)

    def _take_back(self, unfinished: Iterable[PendingRequest]) -> None:
        current = [pending for pending in unfinished if pending.epoch == self._epoch]
        self.backlog.extendleft(reversed(current))
        self.hand_out()

    async def _watched(
        self, member: Member, requests: list[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[Sequence[Trajectory]]:
        """Yield the bursts of the worker. Raises WorkerFailure as soon as the worker is lost."""
        assert member.worker is not None
        stream = aiter(member.worker.generate(requests, sampling))
        while (burst := await member.unless_lost(anext(stream, None))) is not None:
            member.vitals.progressed(self._clock())
            yield burst

    def _fail_backlog_if_no_worker_is_left(self) -> None:
        active = self._roster.active
        # The next version comes after these requests. A worker without a place would wait as well.
        late = [member for member in active if member.waits_for_version]
        if any(not late or m not in late and m.health.state is not Health.PENDING for m in active):
            return
        if late:
            names = ", ".join(member.name for member in late)
            error = FleetExhausted(
                f"no worker has the version that this step's responses need, and the learner's weights are "
                f"newer already ({names})"
            )
        else:
            causes = "; ".join(member.last_failure for member in self._roster.members if member.last_failure)
            error = FleetExhausted(f"no worker is left after {self._roster.restarts} restarts ({causes})")
        while self.backlog:
            self.backlog.popleft().sink.put_nowait(error)


def _by_sink(
    burst: Sequence[Trajectory], outstanding: dict[RequestId, PendingRequest]
) -> dict[Sink, list[Trajectory]]:
    """Group the trajectories by the queue of their caller, and remove them from `outstanding`."""
    found: dict[Sink, list[Trajectory]] = {}
    for trajectory in burst:
        found.setdefault(outstanding.pop(trajectory.request_id).sink, []).append(trajectory)
    return found
