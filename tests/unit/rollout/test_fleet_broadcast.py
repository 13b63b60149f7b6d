"""The order of a broadcast in the fleet, with FAKE workers and a FAKE sender. Real processes are in
tests/unit/actors/test_broadcast_group.py, real engines in tests/ray/test_broadcast.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from sppo_ray.protocols import (
    FleetExhausted,
    Invitation,
    PublishedWeights,
    TransferFailed,
    WeightReceipt,
    WorkerDied,
)
from tests.unit.rollout.test_fleet import FakeWorker, Harness
from tests.unit.rollout.test_fleet import published as as_buffer


@dataclass
class Receiver(FakeWorker):
    """Receives what the sender broadcasts. `breaks` = the broadcasts to it that fail, by epoch."""

    breaks: dict[int, Exception] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    async def places(self) -> list[str]:
        return ["gpu"]

    async def join_group(self, invitation: Invitation) -> None: ...

    async def pull_weights(self, published: PublishedWeights) -> WeightReceipt:
        self.log.append(f"pull {published.manifest.version}")
        return await super().pull_weights(published)

    async def receive_weights(self, published: PublishedWeights, epoch: int) -> None:
        self.log.append(f"receive {published.manifest.version} in epoch {epoch}")
        if epoch in self.breaks:
            raise self.breaks[epoch]

    async def serve_received(self, published: PublishedWeights) -> WeightReceipt:
        return await FakeWorker.pull_weights(self, published)


@dataclass
class FakeSender:
    """`moved`: the learner has been updated since the version was published."""

    log: list[str] = field(default_factory=list)
    refuses_groups: bool = False
    moved: bool = False
    fails: Exception | None = None

    async def open_group(self, epoch: int, workers: Any) -> None:
        self.log.append(f"open {epoch}: {' '.join(worker.name for worker in workers)}")
        if self.refuses_groups:
            raise TransferFailed("no group (fake)")

    async def send(self, version: int, epoch: int) -> None:
        self.log.append(f"send {version} in epoch {epoch}")

    async def flat(self, version: int) -> PublishedWeights | None:
        self.log.append(f"flat {version}")
        if self.fails is not None:
            raise self.fails
        return None if self.moved else as_buffer(version)

    def publish(self, version: int) -> PublishedWeights:
        return replace(as_buffer(version), sender=self)


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_ray.rollout.fleet.restart_delay_s", lambda restarts: 0.0)


def run(harness: Harness, scenario: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await harness.fleet.start()
        try:
            await asyncio.wait_for(scenario(), 10)
        finally:
            await harness.fleet.close()

    asyncio.run(whole())


def notices(harness: Harness) -> list[str]:
    return [text for kind, text in harness.events if kind == "weights-flat"]


def test_a_group_is_formed_once_for_the_same_members() -> None:
    sender, workers = FakeSender(), [Receiver("rollout-0"), Receiver("rollout-1")]
    harness = Harness({worker.name: [worker] for worker in workers})

    async def scenario() -> None:
        for version in (1, 2):
            assert len((await harness.fleet.sync(sender.publish(version))).receipts) == 2
        assert len(await harness.collect(4)) == 4

    run(harness, scenario)
    assert sender.log == ["open 1: rollout-0 rollout-1", "send 1 in epoch 1", "send 2 in epoch 1"]
    assert workers[0].log == ["receive 1 in epoch 1", "receive 2 in epoch 1"]
    assert notices(harness) == []


def test_engines_that_a_broadcast_did_not_reach_get_the_same_version_by_flat() -> None:
    sender = FakeSender()
    workers = [Receiver("rollout-0", breaks={1: TransferFailed("cut (fake)")}), Receiver("rollout-1")]
    harness = Harness({worker.name: [worker] for worker in workers})

    async def scenario() -> None:
        proof = await harness.fleet.sync(sender.publish(1))
        assert [(r.worker, r.version) for r in proof.receipts] == [("rollout-1", 1), ("rollout-0", 1)]
        await harness.fleet.sync(sender.publish(2))

    run(harness, scenario)
    # one epoch broke, so the next version has a new one; nobody was lost
    assert workers[0].log == ["receive 1 in epoch 1", "pull 1", "receive 2 in epoch 2"]
    assert sender.log == [
        "open 1: rollout-0 rollout-1",
        "send 1 in epoch 1",
        "flat 1",
        "open 2: rollout-0 rollout-1",
        "send 2 in epoch 2",
    ]
    assert notices(harness) == ["weights go by flat: cut (fake)"]
    assert harness.fleet.restarts == 0


def test_a_dead_engine_is_replaced_and_the_replacement_pulls_by_flat_until_the_next_epoch() -> None:
    sender, second = FakeSender(), Receiver("rollout-0")
    first = Receiver("rollout-0", breaks={1: WorkerDied("rollout-0", "gone (fake)")})
    other = Receiver("rollout-1", breaks={1: TransferFailed("peer gone (fake)")})
    harness = Harness({"rollout-0": [first, second], "rollout-1": [other]})

    async def scenario() -> None:
        assert [r.worker for r in (await harness.fleet.sync(sender.publish(1))).receipts] == ["rollout-1"]
        while harness.state != "HEALTHY":
            await asyncio.sleep(0)
        assert len(await harness.collect(6)) == 6
        await harness.fleet.sync(sender.publish(2))

    run(harness, scenario)
    assert other.log == ["receive 1 in epoch 1", "pull 1", "receive 2 in epoch 2"]
    assert second.log == ["pull 1", "receive 2 in epoch 2"]


def test_a_group_that_never_forms_is_not_tried_for_ever() -> None:
    sender, worker = FakeSender(refuses_groups=True), Receiver("rollout-0")
    harness = Harness({"rollout-0": [worker]})

    async def scenario() -> None:
        for version in range(4):
            await harness.fleet.sync(sender.publish(version))

    run(harness, scenario)
    assert [entry for entry in sender.log if entry.startswith("open")] == [
        "open 1: rollout-0",
        "open 2: rollout-0",
    ]
    assert worker.log == ["pull 0", "pull 1", "pull 2", "pull 3"]
    assert len(notices(harness)) == 2


def test_an_engine_that_starts_after_the_learner_moved_on_waits_for_the_next_version() -> None:
    sender, second = FakeSender(), Receiver("rollout-0")
    first, other = Receiver("rollout-0", dies_after=0), Receiver("rollout-1")
    harness = Harness({"rollout-0": [first, second], "rollout-1": [other]})

    async def scenario() -> None:
        await harness.fleet.sync(sender.publish(1))
        sender.moved = True
        assert {one.worker for one in await harness.collect(4)} == {"rollout-1"}
        while not notices(harness):
            await asyncio.sleep(0)
        # it serves nothing: no label could be right
        assert harness.state == "STALE"
        assert second.log == []
        await harness.fleet.sync(sender.publish(2))
        assert harness.state == "HEALTHY"

    run(harness, scenario)
    assert second.log == ["receive 2 in epoch 2"]
    assert notices(harness)[0] == (
        "rollout-0 waits for the next version: the learner's weights are newer than policy version 1"
    )


def test_a_learner_that_dies_meanwhile_costs_no_engine() -> None:
    first, second = Receiver("rollout-0", dies_after=0), Receiver("rollout-0")
    harness = Harness({"rollout-0": [first, second], "rollout-1": [Receiver("rollout-1")]})
    sender = FakeSender()

    async def scenario() -> None:
        await harness.fleet.sync(sender.publish(1))
        sender.fails = WorkerDied("learner-0", "gone (fake)")
        assert len(await harness.collect(4)) == 4
        while not notices(harness):
            await asyncio.sleep(0)
        assert (harness.state, harness.fleet.restarts) == ("STALE", 1)

    run(harness, scenario)
    assert notices(harness) == ["rollout-0 waits for the next version: learner-0: gone (fake)"]


def test_the_run_goes_back_to_its_checkpoint_when_nobody_can_get_the_version() -> None:
    sender = FakeSender()
    harness = Harness({"rollout-0": [Receiver("rollout-0", dies_after=1), Receiver("rollout-0")]})

    async def scenario() -> None:
        await harness.fleet.sync(sender.publish(1))
        sender.moved = True
        # without the error this step would wait for responses that wait for its end
        with pytest.raises(FleetExhausted, match="no worker has the version that this step's responses need"):
            await harness.collect(3)
        await harness.fleet.abandon()
        sender.moved = False
        await harness.fleet.sync(sender.publish(1))
        assert len(await harness.collect(3)) == 3

    run(harness, scenario)
