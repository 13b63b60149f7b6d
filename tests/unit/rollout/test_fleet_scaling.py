"""Scaling the fleet with FAKE workers and places (the real ones: tests/ray/test_scaling.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sppo_ray.config import RolloutSettings
from sppo_ray.errors import UserError
from sppo_ray.protocols import PublishedWeights, WeightReceipt, WorkerDied
from sppo_ray.rollout.fleet import RolloutFleet
from sppo_ray.rollout.weight_sync import ProbeTolerance
from sppo_ray.types import RolloutRequest, SamplingSettings, Trajectory
from tests.unit.rollout.test_fleet import SAMPLING, published


@dataclass
class StepWorker:
    """Finishes a response for each permit; dies when it is closed or killed."""

    name: str
    version: int = -1
    served: int = 0
    permits: int = 0
    is_open: bool = False  # needs no permits
    dead: bool = False
    asked: list[str] = field(default_factory=list)

    async def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[list[Trajectory]]:
        self.asked += [request.request_id for request in requests]
        for request in requests:
            await asyncio.sleep(0)
            while not self.dead and not self.is_open and self.permits == 0:
                await asyncio.sleep(0.0005)
            if self.dead:
                raise WorkerDied(self.name, "process is gone (fake)")
            self.permits -= not self.is_open
            self.served += 1
            version = self.version
            yield [Trajectory(
                request.request_id, request.prompt_id, (5,), (-0.1,), "stop", version, version, self.name, 0.0
            )]

    async def pull_weights(self, published: PublishedWeights) -> WeightReceipt:
        await asyncio.sleep(0)
        if self.dead:
            raise WorkerDied(self.name, "process is gone (fake)")
        self.version = published.manifest.version
        return WeightReceipt(
            self.name, self.version, published.manifest.digest, 1, published.probe_logprobs, 0.0
        )

    async def ping(self) -> dict[str, Any]:
        return {"tokens_generated": self.served}

    async def close(self) -> None:
        self.dead = True


class Room:
    """Places of a cluster with so many seats beside those of the start."""

    needs = "2 CPU, 1 GPU"

    def __init__(self, seats: int) -> None:
        self.seats = seats
        self.held: list[str] = []

    async def reserve(self, name: str) -> None:
        while len(self.held) >= self.seats:
            await asyncio.sleep(0.0005)
        self.held.append(name)

    def release(self, name: str) -> None:
        if name in self.held:
            self.held.remove(name)


class Harness:
    """A fleet over StepWorkers, and what came of it."""

    def __init__(self, *, seats: int = 9, **fields: Any) -> None:
        self.workers: list[StepWorker] = []
        self.events: list[tuple[str, str]] = []
        self.room = Room(seats)
        self.all_open = False
        self.fleet = RolloutFleet(
            self.spawn,
            settings=RolloutSettings(**fields),
            tolerance=ProbeTolerance.for_dtype("float32"),
            on_event=lambda kind, message: self.events.append((kind, message)),
            places=self.room,
        )

    async def spawn(self, name: str) -> StepWorker:
        await asyncio.sleep(0)
        self.workers.append(StepWorker(name, is_open=self.all_open))
        return self.workers[-1]

    def open_all(self) -> None:
        self.all_open = True
        for worker in self.workers:
            worker.is_open = True

    @property
    def states(self) -> dict[str, str]:
        return {row.name: row.state for row in self.fleet.view()}

    def worker(self, name: str) -> StepWorker:
        """Its newest incarnation."""
        return next(worker for worker in reversed(self.workers) if worker.name == name)

    async def collect(self, count: int, prefix: str = "r") -> list[Trajectory]:
        requests = [RolloutRequest(f"{prefix}{i}", f"p{i}", (1, 2), seed=i) for i in range(count)]
        return [one async for burst in self.fleet.generate(requests, SAMPLING) for one in burst]


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.0005)


def run(harness: Harness, scenario: Callable[[], Awaitable[Any]]) -> Any:
    async def whole() -> Any:
        await harness.fleet.start()
        await harness.fleet.sync(published(1))
        try:
            return await asyncio.wait_for(scenario(), 20)
        finally:
            await harness.fleet.close()

    return asyncio.run(whole())


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_ray.rollout.fleet.restart_delay_s", lambda restarts: 0.0)


def test_an_added_worker_takes_work_only_after_a_verified_sync() -> None:
    harness = Harness()

    async def scenario() -> None:
        assert harness.fleet.scale(2) == "1 -> 2 rollout workers: adds rollout-1"
        assert harness.states == {"rollout-0": "HEALTHY", "rollout-1": "PENDING"}
        await until(lambda: harness.states["rollout-1"] == "HEALTHY")
        harness.open_all()
        trajectories = await harness.collect(4)
        # 4 = 2 + 2, all by version 1: the new worker never showed its initial weights (-1)
        assert (
            sorted((t.worker, t.policy_version) for t in trajectories)
            == [("rollout-0", 1)] * 2 + [("rollout-1", 1)] * 2
        )
        assert ("worker-added", "rollout-1: serves version 1") in harness.events

    run(harness, scenario)


def test_without_room_a_worker_is_pending_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_ray.rollout.fleet.PENDING_NOTICE_S", 0.01)
    harness = Harness(seats=0)

    async def scenario() -> None:
        harness.fleet.scale(2)
        harness.open_all()
        assert len(await harness.collect(3)) == 3
        (pending,) = harness.fleet.pending()
        assert (pending.worker, pending.waiting_for) == ("rollout-1", "2 CPU, 1 GPU")
        await until(lambda: [kind for kind, _ in harness.events] == ["worker-pending"])
        assert not harness.fleet.is_settled and harness.fleet.wanted == 2
        harness.room.seats = 1
        await until(lambda: harness.states["rollout-1"] == "HEALTHY")
        assert harness.fleet.pending() == [] and harness.fleet.is_settled

    run(harness, scenario)


def test_a_pending_worker_that_is_no_longer_wanted_goes_and_its_name_is_not_given_again() -> None:
    harness = Harness(seats=0)

    async def scenario() -> None:
        harness.fleet.scale(2)
        assert harness.fleet.scale(1) == "2 -> 1 rollout workers: drains rollout-1"
        await until(lambda: harness.states == {"rollout-0": "HEALTHY"})
        harness.room.seats = 1
        assert harness.fleet.scale(2) == "1 -> 2 rollout workers: adds rollout-2"
        await until(lambda: harness.states == {"rollout-0": "HEALTHY", "rollout-2": "HEALTHY"})
        assert harness.room.held == ["rollout-2"]

    run(harness, scenario)


def test_a_draining_worker_finishes_what_it_has_and_gets_no_more() -> None:
    harness = Harness(workers=2)

    async def scenario() -> None:
        first = asyncio.ensure_future(harness.collect(4))
        await until(lambda: [row.in_flight for row in harness.fleet.view()] == [2, 2])
        assert harness.fleet.scale(1) == "2 -> 1 rollout workers: drains rollout-1"
        assert harness.states["rollout-1"] == "DRAINING"
        # what is in flight there goes on under the new weights
        await harness.fleet.sync(published(2))
        assert harness.worker("rollout-1").version == 2 and harness.states["rollout-1"] == "DRAINING"
        second = asyncio.ensure_future(harness.collect(2, prefix="s"))
        await asyncio.sleep(0.01)
        harness.open_all()
        assert len(await first) == 4 and {t.worker for t in await second} == {"rollout-0"}
        await until(lambda: harness.states == {"rollout-0": "HEALTHY"})
        assert harness.worker("rollout-1").dead
        assert harness.events[-1] == ("worker-drained", "rollout-1: finished 2 responses, returned 0")

    run(harness, scenario)


def test_after_its_grace_time_a_draining_worker_hands_back_the_rest() -> None:
    harness = Harness(workers=2, drain_grace_s=0.02)

    async def scenario() -> None:
        collecting = asyncio.ensure_future(harness.collect(6))
        await until(lambda: [row.in_flight for row in harness.fleet.view()] == [3, 3])
        harness.worker("rollout-0").is_open = True
        harness.worker("rollout-1").permits = 1
        harness.fleet.scale(1)
        trajectories = await collecting
        # 6 = 3 + 3; rollout-1 finished one of its three, so two were asked of rollout-0 again.
        assert sorted(t.worker for t in trajectories) == ["rollout-0"] * 5 + ["rollout-1"]
        assert len({t.request_id for t in trajectories}) == 6
        assert harness.events[-1] == ("worker-drained", "rollout-1: finished 1 responses, returned 2")

    run(harness, scenario)


def test_a_draining_worker_that_dies_is_not_revived() -> None:
    harness = Harness(workers=2)

    async def scenario() -> None:
        collecting = asyncio.ensure_future(harness.collect(4))
        await until(lambda: [row.in_flight for row in harness.fleet.view()] == [2, 2])
        harness.fleet.scale(1)
        harness.worker("rollout-1").dead = True
        harness.worker("rollout-0").is_open = True
        assert {t.worker for t in await collecting} == {"rollout-0"}
        await until(lambda: harness.states == {"rollout-0": "HEALTHY"})
        # no worker was started again
        assert [worker.name for worker in harness.workers] == ["rollout-0", "rollout-1"]

    run(harness, scenario)


def test_an_added_worker_that_does_not_start_is_tried_again_and_then_retired() -> None:
    harness = Harness(max_restarts=1)
    good = harness.fleet._spawn

    async def spawn(name: str) -> StepWorker:
        if name == "rollout-1":
            raise UserError("the image is missing on that node")
        return await good(name)

    harness.fleet._spawn = spawn

    async def scenario() -> None:
        harness.fleet.scale(2)
        await until(lambda: harness.states["rollout-1"] == "RETIRED" and not harness.room.held)
        assert "the image is missing on that node" in harness.events[-1][1]
        # asking again replaces it
        assert harness.fleet.scale(2) == "1 -> 2 rollout workers: adds rollout-2"

    run(harness, scenario)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (1, "rollout_workers 1 is less than rollout.min_workers 2: ask for at least 2"),
        (5, "rollout_workers 5 is more than rollout.max_workers 4: ask for at most 4"),
    ],
)
def test_outside_the_bounds_is_refused(count: int, message: str) -> None:
    harness = Harness(workers=2, min_workers=2, max_workers=4)

    async def scenario() -> None:
        with pytest.raises(UserError, match=message):
            harness.fleet.scale(count)
        assert harness.fleet.wanted == 2

    run(harness, scenario)


Action = tuple[str, int]
ACTIONS = st.one_of(
    st.tuples(st.just("scale"), st.integers(1, 4)),
    st.tuples(st.just("kill"), st.integers(0, 9)),
    st.tuples(st.just("finish"), st.integers(0, 9)),
    st.tuples(st.just("ask"), st.integers(1, 4)),
    st.tuples(st.just("sync"), st.just(0)),
    st.tuples(st.just("wait"), st.integers(0, 3)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions=st.lists(ACTIONS, max_size=25), seats=st.integers(0, 4), grace=st.sampled_from([0.0, 0.003, 5.0])
)
def test_each_request_is_answered_once_while_workers_come_and_go(
    actions: list[Action], seats: int, grace: float
) -> None:
    harness = Harness(workers=2, seats=seats, drain_grace_s=grace, max_restarts=1000)

    async def scenario() -> None:
        asked = [asyncio.ensure_future(harness.collect(5, prefix="first-"))]
        version = 1
        for index, (what, number) in enumerate(actions):
            rows = harness.fleet.view()
            started = [worker for worker in harness.workers if not worker.dead]
            if what == "scale":
                harness.fleet.scale(number)
            elif what == "kill" and started:
                started[number % len(started)].dead = True
            elif what == "finish" and started:
                started[number % len(started)].permits += 2
            elif what == "ask":
                asked.append(asyncio.ensure_future(harness.collect(number, prefix=f"{index}-")))
            elif what == "sync":
                version += 1
                await harness.fleet.sync(published(version))
            await asyncio.sleep(0.001 * number if what == "wait" else 0)
            assert len({row.name for row in rows}) == len(rows)
        harness.open_all()
        harness.room.seats = 9
        for answers in await asyncio.gather(*asked):
            ids = [trajectory.request_id for trajectory in answers]
            assert len(set(ids)) == len(ids)
            assert all(1 <= trajectory.policy_version <= version for trajectory in answers)
        # The sync detects the death of a worker that had no requests.
        await harness.fleet.sync(published(version + 1))
        await until(lambda: harness.fleet.is_settled)
        healthy = [row for row in harness.fleet.view() if row.state == "HEALTHY"]
        assert len(healthy) == len(harness.fleet.view()) == harness.fleet.wanted
        assert all(row.in_flight == 0 for row in healthy) and not harness.fleet._requests.backlog
        assert set(harness.room.held) <= {row.name for row in healthy}

    run(harness, scenario)
