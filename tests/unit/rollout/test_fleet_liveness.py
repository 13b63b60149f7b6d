"""Monitoring of the fleet with FAKE workers: frozen, stuck or disconnected in each state, and a
frozen trainer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from sppo_ray.errors import UserError
from sppo_ray.protocols import PublishedWeights, WeightReceipt, WorkerDied
from sppo_ray.types import RolloutRequest, SamplingSettings, Trajectory
from tests.unit.rollout.test_fleet import FakeWorker, Harness, ids, published, until

QUICK = {"probe_every_s": 0.01, "probe_timeout_s": 0.2}


@dataclass
class FreezableWorker(FakeWorker):
    """As SIGSTOP leaves a process: no answer to anything, and no error either."""

    frozen: bool = False
    dead: bool = False

    async def _alive(self) -> None:
        while self.frozen:
            await asyncio.sleep(0.01)
        if self.dead:
            raise WorkerDied(self.name, "process is gone (fake)")

    async def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[Trajectory]:
        async for trajectory in super().generate(requests, sampling):
            await self._alive()
            yield trajectory

    async def pull_weights(self, published: PublishedWeights) -> WeightReceipt:
        await self._alive()
        return await super().pull_weights(published)

    async def ping(self) -> dict[str, Any]:
        await self._alive()
        return await super().ping()


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_ray.rollout.fleet.restart_delay_s", lambda restarts: 0.0)


def run(harness: Harness, scenario: Callable[[], Awaitable[Any]]) -> Any:
    async def whole() -> Any:
        await harness.fleet.start()
        await harness.fleet.sync(published(1))
        try:
            return await asyncio.wait_for(scenario(), 10)
        finally:
            await harness.fleet.close()

    return asyncio.run(whole())


def two_incarnations(**first: Any) -> tuple[Harness, FreezableWorker, FreezableWorker]:
    victim, heir = FreezableWorker("rollout-0", **first), FreezableWorker("rollout-0")
    return Harness({"rollout-0": [victim, heir]}, **QUICK), victim, heir


def test_frozen_while_generating() -> None:
    harness, victim, heir = two_incarnations()

    async def scenario() -> list[Trajectory]:
        victim.frozen = True
        return await harness.collect(3)

    assert ids(run(harness, scenario)) == ["r0", "r1", "r2"]
    assert (victim.closed, heir.served) == (True, 3)
    assert any(
        "answered no probe for" in message for kind, message in harness.events if kind == "worker-lost"
    )


def test_a_worker_lost_while_idle_is_restarted_before_the_next_request() -> None:
    for fault in ("frozen", "dead"):
        harness, victim, heir = two_incarnations()

        async def scenario(
            victim: FreezableWorker = victim, harness: Harness = harness, fault: str = fault
        ) -> None:
            setattr(victim, fault, True)
            await until(lambda: harness.fleet.restarts == 1 and harness.state == "HEALTHY")

        run(harness, scenario)
        assert (victim.closed, heir.version) == (True, 1)


def test_frozen_while_syncing_delays_the_sync_by_the_probe_timeout() -> None:
    """The pull's own deadline (300 s by default) is for engines that answer and do not get on."""
    victim, heir, other = (
        FreezableWorker("rollout-0"),
        FreezableWorker("rollout-0"),
        FreezableWorker("rollout-1"),
    )
    harness = Harness({"rollout-0": [victim, heir], "rollout-1": [other]}, **QUICK)

    async def scenario() -> tuple[str, ...]:
        victim.frozen = True
        proof = await harness.fleet.sync(published(2))
        await until(lambda: harness.state == "HEALTHY")
        return tuple(receipt.worker for receipt in proof.receipts)

    assert run(harness, scenario) == ("rollout-1",)
    assert (heir.version, other.version) == (2, 2)


def test_frozen_while_draining_returns_its_requests_and_is_not_restarted() -> None:
    victim, other = FreezableWorker("rollout-1"), FreezableWorker("rollout-0")
    harness = Harness({"rollout-0": [other], "rollout-1": [victim]}, **QUICK)

    async def scenario() -> list[Trajectory]:
        victim.frozen = True
        collecting = asyncio.ensure_future(harness.collect(4))
        await asyncio.sleep(0.02)
        harness.fleet.scale(1)
        return await collecting

    trajectories = run(harness, scenario)
    assert ids(trajectories) == ["r0", "r1", "r2", "r3"]
    assert {trajectory.worker for trajectory in trajectories} == {"rollout-0"}
    assert [row.name for row in harness.fleet.view()] == ["rollout-0"]


def test_frozen_for_a_moment_is_suspect_keeps_its_work_and_loses_nothing() -> None:
    worker = FreezableWorker("rollout-0")
    harness = Harness({"rollout-0": [worker]}, probe_every_s=0.01, probe_timeout_s=2.0)

    async def scenario() -> list[Trajectory]:
        worker.frozen = True
        collecting = asyncio.ensure_future(harness.collect(2))
        await until(lambda: harness.state == "SUSPECT")
        worker.frozen = False
        return await collecting

    assert ids(run(harness, scenario)) == ["r0", "r1"]
    assert harness.fleet.restarts == 0


def test_a_frozen_trainer_reports_no_lost_worker() -> None:
    harness, _, _ = two_incarnations()
    now = [1000.0]
    harness.fleet._clock = harness.fleet._monitor._clock = lambda: now[0]

    async def scenario() -> str:
        await asyncio.sleep(0.05)
        now[0] += 3600.0  # an hour passes between two looks
        await asyncio.sleep(0.1)
        return harness.state

    assert run(harness, scenario) == "HEALTHY"
    assert harness.fleet.restarts == 0


def test_a_worker_that_dies_at_the_start_is_restarted_while_others_serve() -> None:
    other, heir = FreezableWorker("rollout-0"), FreezableWorker("rollout-1")
    harness = Harness({"rollout-0": [other], "rollout-1": []}, **QUICK)
    starts: list[str] = []

    async def spawn(name: str) -> FreezableWorker:
        starts.append(name)
        if name == "rollout-0":
            return other
        if starts.count(name) == 1:
            raise WorkerDied(name, "died while start-up (fake)")
        return heir

    harness.fleet._spawn = spawn

    async def scenario() -> list[Trajectory]:
        trajectories = await harness.collect(4)
        await until(lambda: [row.state for row in harness.fleet.view()] == ["HEALTHY", "HEALTHY"])
        return trajectories

    assert ids(run(harness, scenario)) == ["r0", "r1", "r2", "r3"]
    assert (heir.version, harness.fleet.restarts) == (1, 1)


def test_an_engine_that_cannot_be_started_as_configured_stops_the_run_at_once() -> None:
    harness = Harness({"rollout-0": []})

    async def spawn(name: str) -> FreezableWorker:
        raise UserError(f"{name}: no model directory")

    harness.fleet._spawn = spawn
    with pytest.raises(UserError, match="rollout-0: no model directory"):
        asyncio.run(harness.fleet.start())


def test_restarts_count_within_their_window_only() -> None:
    """Four deaths with a budget of one in 50 ms: each comes when the one before is forgotten."""
    harness = Harness(
        {"rollout-0": [FreezableWorker("rollout-0") for _ in range(5)]},
        max_restarts=1,
        restart_window_s=0.05,
        **QUICK,
    )
    incarnations = list(harness.scripts["rollout-0"])

    async def scenario() -> None:
        for number, worker in enumerate(incarnations[:4], start=1):
            await asyncio.sleep(0.06)
            worker.dead = True
            await until(lambda number=number: harness.fleet.restarts == number and harness.state == "HEALTHY")

    run(harness, scenario)
    assert harness.fleet.restarts == 4
