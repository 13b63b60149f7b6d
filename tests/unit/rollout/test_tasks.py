"""asyncio must print no stack trace for the tasks of a killed worker. The run reports the loss
once.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.evaluation.sampler import Evaluator
from sppo_ray.protocols import WorkerDied, WorkerFailure
from sppo_ray.rollout.health import RestartBudget
from sppo_ray.rollout.member import Member
from sppo_ray.rollout.pipeline import SamplePipeline
from sppo_ray.types import PromptValue, RolloutRequest, SamplingSettings, ScoreRequest, Trajectory, Verdict
from tests.unit.fakes import FakeFleet, FakeRewardClient, prompt
from tests.unit.launch.test_recovery import Case

SAMPLING = SamplingSettings(1.0, 4, (0,))


def unread(scenario: Callable[[], Awaitable[Any]]) -> list[str]:
    """What asyncio complains of while `scenario` runs and after it."""

    async def whole() -> list[str]:
        complaints: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
        await asyncio.wait_for(scenario(), 10)
        for _ in range(3):  # what is cancelled ends, then its task is freed
            await asyncio.sleep(0)
            gc.collect()
        return complaints

    return asyncio.run(whole())


def test_the_helper_sees_an_unread_error() -> None:
    async def fail() -> None:
        raise WorkerDied("critic-0", "died while valuing prompts")

    async def forget() -> None:
        asyncio.ensure_future(fail())
        await asyncio.sleep(0)

    assert unread(forget) == ["Task exception was never retrieved"]


class DeadCritic:
    async def values(self, token_ids: Sequence[tuple[int, ...]]) -> list[PromptValue]:
        raise WorkerDied("critic-0", "died while valuing prompts")


class DeadRewardClient:
    async def score(self, request: ScoreRequest) -> Verdict:
        raise WorkerDied("reward", "died while scoring")


class StuckFleet(FakeFleet):
    async def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[Trajectory]:
        await asyncio.sleep(3600)
        yield  # type: ignore[misc]


def pipeline(**parts: Any) -> SamplePipeline:
    defaults = {"fleet": FakeFleet(), "critic": None, "reward_client": FakeRewardClient()}
    return SamplePipeline(
        **defaults | parts,
        decode=lambda rows: ["text"] * len(rows),
        sampling=SAMPLING,
        order="dispatch",
        seed=1,
    )


def test_a_critic_that_dies_before_any_response_is_there() -> None:
    async def scenario() -> None:
        samples = pipeline(fleet=StuckFleet(), critic=DeadCritic())
        samples.dispatch(0, [prompt(0)])
        await asyncio.sleep(0.01)
        await samples.close()  # the run goes back to its checkpoint

    assert unread(scenario) == []


@pytest.mark.parametrize("greedy_baseline", [False, True])
def test_a_verifier_that_dies_with_many_samples_on_their_way(greedy_baseline: bool) -> None:
    async def scenario() -> None:
        samples = pipeline(reward_client=DeadRewardClient(), greedy_baseline=greedy_baseline)
        cohort = samples.dispatch(0, [prompt(index) for index in range(8)])
        with pytest.raises(WorkerDied):
            await cohort.take(1)  # the loop hears of it once; seven samples fail as well
        await asyncio.sleep(0.01)
        await samples.close()

    assert unread(scenario) == []


def test_an_answer_that_fails_after_its_worker_was_given_up() -> None:
    async def scenario() -> None:
        member = Member("rollout-0", RestartBudget(60.0))

        async def pull() -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                raise WorkerDied("rollout-0", "died while pulling policy version 3") from None

        waiting = asyncio.ensure_future(member.unless_lost(pull()))
        await asyncio.sleep(0)
        member.lost.set()
        with pytest.raises(WorkerFailure, match="was lost meanwhile"):
            await waiting

    assert unread(scenario) == []


def test_a_critic_and_a_verifier_that_die_during_an_evaluation() -> None:
    async def scenario() -> None:
        evaluator = Evaluator(
            {"held-out": [prompt(0), prompt(1)]},
            fleet=FakeFleet(),
            critic=DeadCritic(),
            reward_client=DeadRewardClient(),
            decode=lambda rows: ["text"] * len(rows),
            sampling=SAMPLING,
            samples_per_prompt=2,
            seed=1,
        )
        with pytest.raises(WorkerDied, match="reward"):
            await evaluator.evaluate(0, 0)

    assert unread(scenario) == []


@pytest.mark.parametrize("role", ["learner", "critic"])
def test_a_run_that_loses_a_worker_in_the_middle_of_a_step(tmp_path: Path, role: str) -> None:
    died = WorkerDied(f"{role}-0", "died while an update: killed")
    case = Case(tmp_path / "run", **{role: {5: died}})
    assert unread(case.scenario) == []
    assert case.told(f"{role}-lost")
