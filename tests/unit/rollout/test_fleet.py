"""The fleet with FAKE workers: each request is answered once, whichever workers die. Real workers
are in tests/ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from sppo_ray.config import RolloutSettings
from sppo_ray.errors import UserError
from sppo_ray.protocols import FleetExhausted, PublishedWeights, WeightManifest, WeightReceipt, WorkerDied
from sppo_ray.rollout.fleet import RolloutFleet
from sppo_ray.rollout.member import Member
from sppo_ray.rollout.weight_sync import ProbeTolerance, WeightMismatch
from sppo_ray.types import RolloutRequest, SamplingSettings, Trajectory

SAMPLING = SamplingSettings(temperature=1.0, max_tokens=4, stop_token_ids=(0,))


def published(version: int) -> PublishedWeights:
    manifest = WeightManifest(version, ("w",), ((1,),), (0,), "float32", 4, f"digest-{version}")
    return PublishedWeights(manifest, handle=None, probe_ids=(1, 2), probe_logprobs=(-0.5,))


@dataclass
class FakeWorker:
    """Serves one request per tick and dies after `dies_after` responses. It can be made stuck: no
    tokens, but answers to pings.
    """

    name: str
    dies_after: int | None = None
    wedged: bool = False
    receipt_digest: str | None = None
    version: int = -1
    served: int = 0
    closed: bool = False
    batches: list[int] = field(default_factory=list)

    async def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[list[Trajectory]]:
        self.batches.append(len(requests))
        for request in requests:
            await asyncio.sleep(0)
            while self.wedged:
                await asyncio.sleep(0.01)
            if self.served == self.dies_after:
                raise WorkerDied(self.name, "process is gone (fake)")
            self.served += 1
            yield [Trajectory(
                request.request_id,
                request.prompt_id,
                (5, 0),
                (-0.1, -0.2),
                "stop",
                self.version,
                self.version,
                self.name,
                0.0,
            )]

    async def pull_weights(self, published: PublishedWeights) -> WeightReceipt:
        self.version = published.manifest.version
        digest = self.receipt_digest or published.manifest.digest
        return WeightReceipt(self.name, self.version, digest, 1, published.probe_logprobs, 0.0)

    async def ping(self) -> dict[str, Any]:
        return {"tokens_generated": self.served}

    async def close(self) -> None:
        self.closed = True


class Harness:
    """A fleet whose incarnations are scripted: `scripts[name]` is a list of workers, one for each
    start.
    """

    def __init__(self, scripts: dict[str, list[FakeWorker]], **settings: Any) -> None:
        self.scripts = scripts
        self.events: list[tuple[str, str]] = []
        self.fleet = RolloutFleet(
            self.spawn,
            settings=RolloutSettings(workers=len(scripts), **settings),
            tolerance=ProbeTolerance.for_dtype("float32"),
            on_event=lambda kind, message: self.events.append((kind, message)),
        )

    async def spawn(self, name: str) -> FakeWorker:
        return self.scripts[name].pop(0)

    @property
    def state(self) -> str:
        """Of the first worker."""
        return self.fleet.view()[0].state

    async def collect(self, count: int) -> list[Trajectory]:
        requests = [RolloutRequest(f"r{i}", f"p{i}", (1, 2), seed=i) for i in range(count)]
        return [one async for burst in self.fleet.generate(requests, SAMPLING) for one in burst]


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_ray.rollout.fleet.restart_delay_s", lambda restarts: 0.0)


def run(harness: Harness, count: int, version: int = 3) -> list[Trajectory]:
    async def scenario() -> list[Trajectory]:
        await harness.fleet.start()
        await harness.fleet.sync(published(version))
        try:
            return await asyncio.wait_for(harness.collect(count), 5)
        finally:
            await harness.fleet.close()

    return asyncio.run(scenario())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def ids(trajectories: list[Trajectory]) -> list[str]:
    return sorted(trajectory.request_id for trajectory in trajectories)


def test_work_is_shared_equally() -> None:
    workers = [FakeWorker("rollout-0"), FakeWorker("rollout-1")]
    harness = Harness({w.name: [w] for w in workers})
    assert ids(run(harness, 7)) == sorted(f"r{i}" for i in range(7))
    assert [w.batches for w in workers] == [[4], [3]]  # 7 = 4 + 3, one call each


def test_a_next_turn_goes_where_its_prefix_is_cached_and_the_rest_evens_out() -> None:
    workers = [FakeWorker("rollout-0"), FakeWorker("rollout-1")]
    harness = Harness({w.name: [w] for w in workers})
    # three prefer rollout-1, which leaves the other three to rollout-0; rollout-9 is gone
    wishes = ["rollout-1", "", "rollout-1", "rollout-9", "rollout-1", ""]

    async def collect(count: int) -> list[Trajectory]:
        requests = [RolloutRequest(f"r{i}", "p", (1, 2), i, prefers=wish) for i, wish in enumerate(wishes)]
        return [one async for burst in harness.fleet.generate(requests, SAMPLING) for one in burst]

    harness.collect = collect  # type: ignore[method-assign]
    served = {one.request_id: one.worker for one in run(harness, len(wishes))}
    assert len(served) == 6 and {served["r0"], served["r2"], served["r4"]} == {"rollout-1"}
    assert [w.batches for w in workers] == [[3], [3]]


def test_a_death_loses_and_repeats_nothing() -> None:
    first, heir, other = (
        FakeWorker("rollout-0", dies_after=2),
        FakeWorker("rollout-0"),
        FakeWorker("rollout-1"),
    )
    harness = Harness({"rollout-0": [first, heir], "rollout-1": [other]})
    assert ids(run(harness, 10)) == sorted(f"r{i}" for i in range(10))
    # 10 requests = 5 + 5; rollout-0 served 2 of its 5, so 3 were dispatched again.
    assert first.served == 2 and first.closed and other.served + heir.served == 8
    assert ("worker-lost", "rollout-0: process is gone (fake)") in harness.events


def test_the_only_worker_is_revived_and_serves_the_published_version() -> None:
    harness = Harness({"rollout-0": [FakeWorker("rollout-0", dies_after=1), FakeWorker("rollout-0")]})
    trajectories = run(harness, 4, version=9)
    assert ids(trajectories) == ["r0", "r1", "r2", "r3"]
    # never the heir's initial weights (-1)
    assert {trajectory.policy_version for trajectory in trajectories} == {9}
    assert harness.fleet.restarts == 1


def test_a_worker_marked_as_failed_is_replaced_and_the_new_one_is_verified() -> None:
    suspect, heir, other = FakeWorker("rollout-0"), FakeWorker("rollout-0"), FakeWorker("rollout-1")
    harness = Harness({"rollout-0": [suspect, heir], "rollout-1": [other]})

    async def scenario() -> list[Trajectory]:
        await harness.fleet.start()
        await harness.fleet.sync(published(3))
        harness.fleet.mark_failed(WeightMismatch("rollout-0", "does not sample from the learner's policy"))
        assert [worker.state for worker in harness.fleet.view()] == ["DEAD", "HEALTHY"]
        await until(lambda: harness.state == "HEALTHY")
        found = await harness.collect(4)
        await harness.fleet.close()
        return found

    assert ids(asyncio.run(scenario())) == ["r0", "r1", "r2", "r3"]
    assert suspect.closed and (suspect.served, heir.version) == (0, 3)
    assert ("worker-lost", "rollout-0: does not sample from the learner's policy") in harness.events


def test_restarts_used_up_is_an_error_that_names_the_remedy() -> None:
    harness = Harness(
        {"rollout-0": [FakeWorker("rollout-0", dies_after=0), FakeWorker("rollout-0", dies_after=0)]},
        max_restarts=1,
    )
    with pytest.raises(FleetExhausted, match="no worker is left after 1 restarts"):
        run(harness, 2)


def test_a_stuck_engine_that_answers_pings_is_replaced() -> None:
    harness = Harness(
        {"rollout-0": [FakeWorker("rollout-0", wedged=True), FakeWorker("rollout-0")]}, stall_timeout_s=0.05
    )
    assert ids(run(harness, 2)) == ["r0", "r1"]
    assert any("answers probes but made no token" in message for _, message in harness.events)


def test_a_wrong_digest_never_serves() -> None:
    liar, honest = FakeWorker("rollout-0", receipt_digest="bad"), FakeWorker("rollout-0")
    harness = Harness({"rollout-0": [liar, honest]})
    assert ids(run(harness, 3)) == ["r0", "r1", "r2"]
    assert liar.served == 0 and honest.served == 3
    assert any("digest of version 3 is bad" in message for _, message in harness.events)


def test_an_unfinished_stream_is_a_failure_not_a_loss() -> None:
    class Forgetful(FakeWorker):
        async def generate(
            self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
        ) -> AsyncIterator[list[Trajectory]]:
            async for burst in super().generate(requests[:-1], sampling):
                yield burst

    harness = Harness({"rollout-0": [Forgetful("rollout-0"), FakeWorker("rollout-0")]})
    assert ids(run(harness, 3)) == ["r0", "r1", "r2"]
    assert any("1 of 3 responses missing" in message for _, message in harness.events)


def test_a_bug_in_the_engine_reaches_the_caller() -> None:
    class Broken(FakeWorker):
        async def generate(
            self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
        ) -> AsyncIterator[list[Trajectory]]:
            raise ValueError("prompt longer than the context")
            yield  # makes this an async generator

    with pytest.raises(ValueError, match="longer than the context"):
        run(Harness({"rollout-0": [Broken("rollout-0")]}), 2)


def test_what_arrives_during_an_unproven_pull_is_not_delivered() -> None:
    class Eager(FakeWorker):
        async def pull_weights(self, published: PublishedWeights) -> WeightReceipt:
            receipt = await super().pull_weights(published)
            if published.manifest.version == 2:
                self.wedged = False  # a response of unproven weights gets out first ...
                await asyncio.sleep(0.05)
                return replace(receipt, digest="bad")  # ... and then the proof fails
            return receipt

    eager, heir = Eager("rollout-0", wedged=True), FakeWorker("rollout-0")
    harness = Harness({"rollout-0": [eager, heir]})

    async def scenario() -> list[Trajectory]:
        await harness.fleet.start()
        await harness.fleet.sync(published(1))
        collecting = asyncio.ensure_future(harness.collect(2))
        await asyncio.sleep(0.02)
        await harness.fleet.sync(published(2))
        try:
            return await asyncio.wait_for(collecting, 5)
        finally:
            await harness.fleet.close()

    assert {trajectory.worker for trajectory in asyncio.run(scenario())} == {"rollout-0"}
    assert heir.served == 2


def test_a_restart_that_fails_for_any_reason_uses_up_the_budget_and_ends_the_wait() -> None:
    harness = Harness({"rollout-0": [FakeWorker("rollout-0", dies_after=1)]}, max_restarts=2)
    first = harness.scripts["rollout-0"]

    async def spawn(name: str) -> FakeWorker:
        if first:
            return first.pop(0)
        raise UserError("rollout-0: the engine did not start: /dev/shm is full")

    harness.fleet._spawn = spawn
    with pytest.raises(FleetExhausted, match="no worker is left after 2 restarts"):
        run(harness, 3)
    assert any("/dev/shm is full" in message for kind, message in harness.events if kind == "worker-retired")


def test_requests_wait_for_a_suspect_worker_to_recover() -> None:
    slow = FakeWorker("rollout-0", wedged=True)
    harness = Harness({"rollout-0": [slow]}, stall_timeout_s=1.0)

    async def scenario() -> tuple[list[Trajectory], list[Trajectory]]:
        await harness.fleet.start()
        await harness.fleet.sync(published(1))
        first = asyncio.ensure_future(harness.collect(1))
        await until(lambda: harness.state == "SUSPECT")  # after half of the time-out
        second = asyncio.ensure_future(harness.collect(1))
        slow.wedged = False
        try:
            return await asyncio.wait_for(first, 5), await asyncio.wait_for(second, 5)
        finally:
            await harness.fleet.close()

    assert [len(part) for part in asyncio.run(scenario())] == [1, 1]
    assert harness.fleet.restarts == 0


def test_a_worker_that_dies_during_a_pull_is_restarted_and_its_late_receipt_is_ignored() -> None:
    class DiesWhilePulling(FakeWorker):
        async def pull_weights(self, published: PublishedWeights) -> WeightReceipt:
            receipt = await super().pull_weights(published)
            if published.manifest.version == 2:
                # the stream fails while the pull is under way
                self.wedged, self.dies_after = False, self.served
                await asyncio.sleep(0.05)
            return receipt

    victim, heir = DiesWhilePulling("rollout-0", wedged=True), FakeWorker("rollout-0")
    harness = Harness({"rollout-0": [victim, heir]})

    async def scenario() -> list[Trajectory]:
        await harness.fleet.start()
        await harness.fleet.sync(published(1))
        collecting = asyncio.ensure_future(harness.collect(2))
        await asyncio.sleep(0.02)
        proof = await harness.fleet.sync(published(2))
        assert proof.receipts == ()
        try:
            return await asyncio.wait_for(collecting, 5)
        finally:
            await harness.fleet.close()

    assert {trajectory.policy_version for trajectory in asyncio.run(scenario())} == {2}
    assert heir.served == 2 and harness.fleet.restarts == 1


class CountedMember(Member):
    """A member that counts how often its load is read."""

    reads = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "in_flight":
            CountedMember.reads += 1
        return super().__getattribute__(name)


def test_the_work_of_handing_out_is_not_requests_times_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_ray.rollout.roster.Member", CountedMember)
    workers, requests = 32, 640
    fakes = [FakeWorker(f"rollout-{n}") for n in range(workers)]
    harness = Harness({fake.name: [fake] for fake in fakes})
    reads = 0

    async def scenario() -> None:
        nonlocal reads
        await harness.fleet.start()
        await harness.fleet.sync(published(0))
        before = CountedMember.reads
        asked = [RolloutRequest(f"r{i}", f"p{i}", (1, 2), seed=i) for i in range(requests)]
        stream = harness.fleet.generate(asked, SAMPLING)
        await anext(stream)
        reads = CountedMember.reads - before
        await harness.fleet.close()

    asyncio.run(scenario())
    assert [fake.batches for fake in fakes] == [[requests // workers]] * workers
    assert reads < 10 * (requests + workers)
