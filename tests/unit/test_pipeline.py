"""From prompts to scored trajectories with FAKE workers: order, completeness, and where failures surface."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sppo_ray.trainer.pipeline import Cohort, RewardOutOfRange, SamplePipeline, UnscoredTrajectory, build_requests
from sppo_ray.types import SamplingSettings
from tests.unit.fakes import FakeCritic, FakeFleet, FakeScorer, prompt

SAMPLING = SamplingSettings(1.0, 4, (0,))


def pipeline(fleet: Any, scorer: FakeScorer, order: str = "finish") -> SamplePipeline:
    return SamplePipeline(
        fleet=fleet,
        critic=FakeCritic([]),
        scorer=scorer,
        decode=lambda ids: f"text of {len(ids)}",
        sampling=SAMPLING,
        order=order,
        seed=1,
    )


def outcomes(fleet: Any, scorer: FakeScorer, count: int = 4, order: str = "finish") -> list[Any]:
    async def scenario() -> list[Any]:
        cohort: Cohort = pipeline(fleet, scorer, order).dispatch(0, [prompt(i) for i in range(count)])
        first = await cohort.take(count // 2)
        return first + await cohort.take(count - count // 2)

    return asyncio.run(asyncio.wait_for(scenario(), 5))


def test_outcomes_come_in_the_order_of_finishing_not_of_scoring() -> None:
    # Prompts finish as 2, 3, 0, 1; the verifier is slow on 2. A scorer's race must not change the order.
    fleet = FakeFleet(delays={"task/2": 0, "task/3": 1, "task/0": 2, "task/1": 3})
    got = outcomes(fleet, FakeScorer(slow=frozenset({"2"})))
    assert [o.prompt.id for o in got] == ["task/2", "task/3", "task/0", "task/1"]
    assert [o.reward for o in got] == [1.0, 0.0, 1.0, 0.0]
    assert all(o.value.value == 0.5 for o in got)


def test_dispatch_order_is_the_order_of_the_prompts() -> None:
    fleet = FakeFleet(delays={"task/2": 0, "task/3": 1, "task/0": 2, "task/1": 3})
    assert [o.prompt.id for o in outcomes(fleet, FakeScorer(), order="dispatch")] == [f"task/{i}" for i in range(4)]


def test_a_verifier_error_is_an_outcome_not_a_zero() -> None:
    got = outcomes(FakeFleet(), FakeScorer(broken=frozenset({"1"})))
    assert [isinstance(o, UnscoredTrajectory) for o in got] == [False, True, False, False]
    assert got[1].reason == "error: timeout after 10 s"


@pytest.mark.parametrize("reward", [-1.0, 1.5, float("nan")])
def test_a_reward_outside_the_unit_interval_stops_the_run_naming_the_prompt(reward: float) -> None:
    with pytest.raises(RewardOutOfRange, match="prompt task/0: the verifier returned"):
        outcomes(FakeFleet(), FakeScorer(reward=reward))


def test_a_failure_of_generation_reaches_whoever_waits() -> None:
    class Broken(FakeFleet):
        async def generate(self, requests: Any, sampling: Any) -> Any:
            async for trajectory in super().generate(requests[:1], sampling):
                yield trajectory
            raise RuntimeError("no worker is left")

    with pytest.raises(RuntimeError, match="no worker is left"):
        outcomes(Broken(), FakeScorer())


def test_seeds_depend_on_the_purpose_and_nothing_else() -> None:
    prompts = [prompt(0), prompt(1)]
    requests = build_requests(prompts, 2, 7, "step-3")
    assert [r.request_id for r in requests] == ["step-3/0/0", "step-3/0/1", "step-3/1/0", "step-3/1/1"]
    assert len({r.seed for r in requests}) == 4
    assert requests == build_requests(prompts, 2, 7, "step-3")
    assert {r.seed for r in requests}.isdisjoint(r.seed for r in build_requests(prompts, 2, 8, "step-3"))
