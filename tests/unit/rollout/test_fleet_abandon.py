"""The fleet with FAKE workers when the run returns to a checkpoint: old results are dropped,
engines are kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from sppo_ray.protocols import WorkerTimeout
from sppo_ray.types import RolloutRequest, SamplingSettings, Trajectory
from tests.unit.rollout.test_fleet import FakeWorker, Harness, ids, published, until


@dataclass
class Slow(FakeWorker):
    """Generates until its requests are aborted. It ignores the first `deaf` calls of abort."""

    deaf: int = 0
    slow: bool = True
    orders: int = 0

    def __post_init__(self) -> None:
        self.dropped = asyncio.Event()
        self.in_flight: set[str] = set()

    async def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[list[Trajectory]]:
        if repeated := self.in_flight & {request.request_id for request in requests}:
            raise AssertionError(f"{repeated} are in flight already")  # as a real engine has it
        if self.slow:
            self.in_flight |= {request.request_id for request in requests}
            await self.dropped.wait()
            self.in_flight.clear()
            return
        async for burst in super().generate(requests, sampling):
            yield burst

    async def abort(self) -> None:
        self.orders += 1
        if self.orders > self.deaf:
            self.slow = False
            self.dropped.set()
            await asyncio.sleep(0.02)  # the streams end before the answer is there


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_ray.rollout.fleet.restart_delay_s", lambda restarts: 0.0)
    monkeypatch.setattr("sppo_ray.rollout.member.DROP_AGAIN_S", 0.01)
    monkeypatch.setattr("sppo_ray.rollout.member.DROP_DEADLINE_S", 0.3)


async def begun(harness: Harness, count: int) -> asyncio.Task[list[Trajectory]]:
    """Version 7 served, and `count` requests under way."""
    await harness.fleet.start()
    await harness.fleet.sync(published(7))
    asked = asyncio.ensure_future(harness.collect(count))
    await until(lambda: sum(row.in_flight for row in harness.fleet.view()) == count)
    return asked


async def gone(asked: asyncio.Task[list[Trajectory]]) -> None:
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


def test_engines_are_kept_and_stale_until_the_restored_version_is_proven() -> None:
    async def scenario() -> None:
        workers = [Slow("rollout-0"), Slow("rollout-1")]
        harness = Harness({worker.name: [worker] for worker in workers})
        asked = await begun(harness, 6)
        await gone(asked)
        await harness.fleet.abandon()
        assert [(row.state, row.version, row.in_flight) for row in harness.fleet.view()] == [
            ("STALE", None, 0)
        ] * 2
        again = asyncio.ensure_future(harness.collect(6))  # the same request ids
        await asyncio.sleep(0.02)
        # nothing is admitted before the sync
        assert [worker.batches for worker in workers] == [[], []]
        await harness.fleet.sync(published(3))
        trajectories = await asyncio.wait_for(again, 5)
        assert ids(trajectories) == [f"r{i}" for i in range(6)]
        assert {trajectory.policy_version for trajectory in trajectories} == {3}
        assert harness.fleet.restarts == 0 and harness.events == []
        await harness.fleet.close()

    asyncio.run(scenario())


def test_abort_is_repeated_until_all_streams_have_ended() -> None:
    async def scenario() -> None:
        worker = Slow("rollout-0")
        worker.deaf = 2  # the batch was on its way to the engine when the first orders came
        harness = Harness({"rollout-0": [worker]})
        asked = await begun(harness, 2)
        await gone(asked)
        await harness.fleet.abandon()
        assert (worker.orders, harness.state) == (3, "STALE")
        await harness.fleet.close()

    asyncio.run(scenario())


def test_a_worker_that_does_not_drop_its_requests_is_replaced() -> None:
    async def scenario() -> None:
        stubborn, fresh = Slow("rollout-0"), Slow("rollout-0")
        stubborn.deaf, fresh.slow = 10**6, False
        harness = Harness({"rollout-0": [stubborn, fresh]})
        asked = await begun(harness, 2)
        await gone(asked)
        await harness.fleet.abandon()
        await until(lambda: harness.state == "STALE")
        assert stubborn.closed and harness.fleet.restarts == 1
        assert harness.events[0] == ("worker-lost", "rollout-0: did not drop its requests in 0 s")
        await harness.fleet.sync(published(3))
        assert ids(await asyncio.wait_for(harness.collect(2), 5)) == ["r0", "r1"]
        await harness.fleet.close()

    asyncio.run(scenario())


def test_what_a_dead_worker_left_is_not_generated_after_the_return() -> None:
    """It dies in the same moment: its unfinished requests must not come back to the backlog of the
    restored run.
    """

    class DiesWhenTold(Slow):
        async def abort(self) -> None:
            self.dropped.set()
            raise WorkerTimeout(self.name, "gave no answer to dropping its requests in 30 s")

    async def scenario() -> None:
        fresh = Slow("rollout-0")
        fresh.slow = False
        harness = Harness({"rollout-0": [DiesWhenTold("rollout-0"), fresh]})
        asked = await begun(harness, 4)
        await gone(asked)
        await harness.fleet.abandon()
        await until(lambda: harness.state == "STALE")
        await harness.fleet.sync(published(3))
        await asyncio.sleep(0.02)
        assert fresh.batches == []
        assert len(await asyncio.wait_for(harness.collect(1), 5)) == 1
        assert fresh.batches == [1]
        await harness.fleet.close()

    asyncio.run(scenario())


def test_a_pull_of_the_abandoned_version_is_ignored() -> None:
    class SlowPull(Slow):
        async def pull_weights(self, published: object) -> object:  # type: ignore[override]
            await self.pulling.wait()
            return await super().pull_weights(published)  # type: ignore[arg-type]

    async def scenario() -> None:
        worker = SlowPull("rollout-0")
        worker.pulling = asyncio.Event()
        harness = Harness({"rollout-0": [worker]})
        await harness.fleet.start()
        sync = asyncio.ensure_future(harness.fleet.sync(published(7)))
        await asyncio.sleep(0.01)
        await harness.fleet.abandon()
        worker.pulling.set()
        await sync
        assert harness.state == "STALE"
        await harness.fleet.sync(published(3))
        assert (harness.state, harness.fleet.view()[0].version) == ("HEALTHY", 3)
        await harness.fleet.close()

    asyncio.run(scenario())


def test_workers_are_replaced_when_all_have_used_up_their_restarts() -> None:
    async def scenario() -> None:
        doomed, fresh = [FakeWorker("rollout-0", dies_after=0) for _ in range(2)], FakeWorker("rollout-1")
        harness = Harness({"rollout-0": doomed}, max_restarts=1)
        harness.scripts["rollout-1"] = [fresh]
        await harness.fleet.start()
        harness.fleet.replenish()  # nothing to do
        await harness.fleet.sync(published(7))
        with pytest.raises(Exception, match="no worker is left"):
            await asyncio.wait_for(harness.collect(2), 5)
        await harness.fleet.abandon()
        harness.fleet.replenish()
        await harness.fleet.sync(published(3))
        assert ids(await asyncio.wait_for(harness.collect(2), 5)) == ["r0", "r1"]
        assert [(row.name, row.state, row.restarts) for row in harness.fleet.view()] == [
            ("rollout-1", "HEALTHY", 0)
        ]
        assert harness.fleet.restarts == 1
        await harness.fleet.close()

    asyncio.run(scenario())
