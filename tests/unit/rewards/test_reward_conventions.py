"""Reward functions that were written for verl, TRL and OpenRLHF score as they do there."""

from __future__ import annotations

import asyncio

import pytest

from sppo_ray.config import CustomReward, RewardSettings
from sppo_ray.errors import UserError
from sppo_ray.protocols import ScoreRequest
from sppo_ray.rewards.pool.pool import VerifierPool
from sppo_ray.rewards.registry import build_verifier

HERE = "tests.unit.rewards.reward_conventions"
ROW = {"data_source": "gsm8k", "prompt": "The sum of 20 and 22?", "index": 7}


@pytest.mark.parametrize(
    "name",
    ["verl", "verl_with_a_dict", "trl", "trl_with_answers", "openrlhf", "in_numpy", "as_a_numpy_bool"],
)
def test_a_function_of_another_system_is_called_as_there(name: str) -> None:
    verifier = build_verifier(CustomReward(function=f"{HERE}:{name}"))
    assert verifier.score("it is 42", "42", ROW) == (1.0, "correct")
    assert verifier.score("it is 41", "42", ROW) == (0.0, "wrong")


def test_the_pool_hands_prompt_and_data_source_to_it() -> None:
    request = ScoreRequest("so 42", "42", "gsm8k", "The sum of 20 and 22?", {"index": 7})

    async def score() -> list[float | None]:
        rewards = []
        for name in ("verl", "trl", "openrlhf"):
            pool = VerifierPool(RewardSettings(function=CustomReward(function=f"{HERE}:{name}")))
            try:
                rewards.append((await pool.score(request)).reward)
            finally:
                await pool.close()
        return rewards

    assert asyncio.run(score()) == [1.0, 1.0, 1.0]


def test_parameters_that_no_system_has_are_refused_before_a_sample() -> None:
    with pytest.raises(UserError, match=r"takes \(response, truth\), and is called with .*solution_str"):
        build_verifier(CustomReward(function=f"{HERE}:two_parameters"))
