"""Environments of the package verifiers, with the real package where it is installed: it is no
dependency.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sppo_ray.config.environment import CustomEnvironment
from sppo_ray.environments.base import Row, StepRequest, StepResult
from sppo_ray.environments.pool.pool import EnvironmentPool

pytest.importorskip("verifiers", reason="needs pip install 'verifiers<0.3.2'")

NAME = "tests.unit.environments.verifiers_for_tests"
FIRST = ({"role": "system", "content": "Play."}, {"role": "user", "content": "Guess 5?"})


def play(*actions: str, index: int = 0, seed: int = 0, **arguments: Any) -> list[StepResult]:
    settings = CustomEnvironment(
        environment="sppo_ray.environments.verifiers:VerifiersEnvironment",
        options={"environment": NAME, "arguments": arguments},
        max_turn_tokens=8,
        deadline_s=60.0,
        confined=False,
    )
    row = Row("", "", "", {"index": index, "seed": seed}, "environment/0", FIRST)

    async def run() -> list[StepResult]:
        pool = EnvironmentPool(settings)
        taken = [actions[:number] for number in range(len(actions) + 1)]
        try:
            return [await pool.step(StepRequest("e", row, 0, part)) for part in taken]
        finally:
            await pool.close()

    return asyncio.run(run())


def test_an_episode_is_the_rollout_of_the_environment() -> None:
    begun, first, second, end = play("1", "9", "5")
    assert begun.messages == FIRST
    assert [one.observation.text for one in (first, second)] == ["higher", "lower"]
    assert (end.observation.done, end.observation.reward) == (True, 1.0)


def test_it_ends_where_the_environment_ends_it() -> None:
    *_, end = play("1", "2", "3")  # max_turns of the environment
    assert (end.error, end.observation.done, end.observation.reward) == ("", True, 0.0)
    assert end.observation.reason == "max_turns_reached"


def test_rows_are_those_of_its_data_sets() -> None:
    assert [play(index=index)[0].messages[-1]["content"] for index in (1, 2)] == ["Guess 9?", "Guess 5?"]
    assert play(index=3, seed=1_000_000)[0].messages[-1]["content"] == "Guess 7?"


def test_what_cannot_be_played_is_an_error() -> None:
    _, failed = play("no number")
    assert failed.error.startswith("ValueError: invalid literal for int")
    (begun,) = play(tools=True)
    assert "tools through the API" in begun.error
