"""What each worker was busy with: each second of a worker has one label."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sppo_ray.trainer.worker_times import WorkerTimes, timed


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_second_has_one_label() -> None:
    clock = FakeClock()
    times = WorkerTimes(clock)
    times.add("learner")
    with times.span("rollout-0", "generate", "generate"):
        clock.now = 4.0
        with times.span("rollout-0", "sync", "pull_weights"):  # it has requests and takes over weights
            clock.now = 5.0
        clock.now = 6.0
    clock.now = 10.0
    found = times.next_step(["rollout-0", "rollout-1"])
    assert found == pytest.approx(
        {
            "time/learner/wait": 1.0,
            "time/rollout/generate": 0.25,
            "time/rollout/sync": 0.05,
            "time/rollout/wait": 0.7,
        }
    )


def test_a_span_across_the_end_of_a_step_counts_in_both() -> None:
    clock = FakeClock()
    times = WorkerTimes(clock)
    with times.span("rollout-0", "generate", "generate"):
        clock.now = 2.0
        assert times.next_step(["rollout-0"])["time/rollout/generate"] == 1.0
        clock.now = 3.0
    clock.now = 6.0
    assert times.next_step(["rollout-0"])["time/rollout/generate"] == 0.25
    clock.now = 7.0
    assert times.next_step([]) == {}  # the engine is gone


class FakeEngine:
    name = "rollout-0"

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    async def generate(self, requests: Any, sampling: Any) -> AsyncIterator[list[str]]:
        for request in requests:
            self._clock.now += 1.0
            yield [request]
        raise ValueError("the stream breaks")

    async def pull_weights(self, published: str) -> str:
        self._clock.now += 2.0
        return published


def test_the_calls_of_a_timed_worker_are_spans_also_when_they_fail() -> None:
    clock = FakeClock()
    times = WorkerTimes(clock)
    engine: Any = timed(FakeEngine(clock), "rollout-0", times)

    async def work() -> None:
        assert await engine.pull_weights("version 1") == "version 1"
        with pytest.raises(ValueError, match="breaks"):
            async for burst in engine.generate(["a", "b"], None):
                assert len(burst) == 1

    asyncio.run(work())
    clock.now += 4.0
    assert engine.name == "rollout-0"
    assert times.next_step(["rollout-0"]) == pytest.approx(
        {"time/rollout/generate": 0.25, "time/rollout/sync": 0.25, "time/rollout/wait": 0.5}
    )
