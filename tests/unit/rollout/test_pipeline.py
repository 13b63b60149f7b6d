"""The sample pipeline with FAKE workers: order, completeness and errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sppo_ray.rollout.pipeline import (
    RewardOutOfRange,
    RolloutBatch,
    SamplePipeline,
    UnscoredTrajectory,
    build_requests,
)
from sppo_ray.types import RequestId, SamplingSettings
from tests.unit.fakes import FakeCritic, FakeFleet, FakeRewardClient, prompt

SAMPLING = SamplingSettings(1.0, 4, (0,))


def pipeline(fleet: Any, reward_client: FakeRewardClient, order: str = "finish") -> SamplePipeline:
    return SamplePipeline(
        fleet=fleet,
        critic=FakeCritic([]),
        reward_client=reward_client,
        decode=lambda rows: [f"text of {len(ids)}" for ids in rows],
        sampling=SAMPLING,
        order=order,
        seed=1,
    )


def outcomes(fleet: Any, reward_client: FakeRewardClient, count: int = 4, order: str = "finish") -> list[Any]:
    async def scenario() -> list[Any]:
        cohort: RolloutBatch = pipeline(fleet, reward_client, order).dispatch(
            0, [prompt(i) for i in range(count)]
        )
        first = await cohort.take(count // 2)
        return first + await cohort.take(count - count // 2)

    return asyncio.run(asyncio.wait_for(scenario(), 5))


def test_outcomes_come_in_the_order_of_finishing_not_of_scoring() -> None:
    # Prompts finish as 2, 3, 0, 1; the verifier is slow on 2. A race of verifiers must not
    # change the order.
    fleet = FakeFleet(delays={"task/2": 0, "task/3": 1, "task/0": 2, "task/1": 3})
    got = outcomes(fleet, FakeRewardClient(slow=frozenset({"2"})))
    assert [o.prompt.id for o in got] == ["task/2", "task/3", "task/0", "task/1"]
    assert [o.reward for o in got] == [1.0, 0.0, 1.0, 0.0]
    assert all(o.value.value == 0.5 for o in got)


def test_dispatch_order_is_the_order_of_the_prompts() -> None:
    fleet = FakeFleet(delays={"task/2": 0, "task/3": 1, "task/0": 2, "task/1": 3})
    assert [o.prompt.id for o in outcomes(fleet, FakeRewardClient(), order="dispatch")] == [
        f"task/{i}" for i in range(4)
    ]


def test_a_verifier_error_is_an_outcome_not_a_zero() -> None:
    got = outcomes(FakeFleet(), FakeRewardClient(broken=frozenset({"1"})))
    assert [isinstance(o, UnscoredTrajectory) for o in got] == [False, True, False, False]
    assert got[1].reason == "error: timeout after 10 s"


@pytest.mark.parametrize("reward", [-1.0, 1.5, float("nan")])
def test_a_reward_outside_the_unit_interval_stops_the_run_naming_the_prompt(reward: float) -> None:
    with pytest.raises(RewardOutOfRange, match="prompt task/0: the verifier returned"):
        outcomes(FakeFleet(), FakeRewardClient(reward=reward))


def test_a_generation_error_is_raised_by_take() -> None:
    class Broken(FakeFleet):
        async def generate(self, requests: Any, sampling: Any) -> Any:
            async for burst in super().generate(requests[:1], sampling):
                yield burst
            raise RuntimeError("no worker is left")

    with pytest.raises(RuntimeError, match="no worker is left"):
        outcomes(Broken(), FakeRewardClient())


def test_seeds_depend_on_the_purpose_and_nothing_else() -> None:
    prompts = [prompt(0), prompt(1)]
    requests = build_requests(prompts, 2, 7, "step-3")
    assert [str(r.request_id) for r in requests] == ["step-3/0/0", "step-3/0/1", "step-3/1/0", "step-3/1/1"]
    assert len({r.seed for r in requests}) == 4
    assert requests == build_requests(prompts, 2, 7, "step-3")
    assert {r.seed for r in requests}.isdisjoint(r.seed for r in build_requests(prompts, 2, 8, "step-3"))


def test_a_request_id_is_its_text_and_knows_its_group() -> None:
    first, second = (request.request_id for request in build_requests([prompt(0)], 2, 1, "step-3.1"))
    assert (str(first), second.group, second.sample) == ("step-3.1/0/0", "step-3.1/0", 1)
    assert RequestId.parse("step-3.1/0/1") == second and first.group == second.group
