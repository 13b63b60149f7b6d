"""Environments in a run's settings: what does not work together is refused with its remedy."""

from __future__ import annotations

import pytest

from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from sppo_ray.planning.resources import bundles_of, learning_bundles_of, serving_bundles_of
from sppo_ray.trainer.checkpoint import resumable_settings

CUSTOM = "--environment={type: custom, environment: 'games:Game', max_turn_tokens: 8, %s}"


def test_a_run_without_an_environment_has_no_trace_of_one() -> None:
    config = load_config("quickstart")
    assert config.environment is None and config.reward_range == config.reward.range
    assert [bundle.role for bundle in bundles_of(config)] == ["rollout-0", "learner-0", "critic-0", "reward"]


def test_an_environment_has_an_actor_of_its_own() -> None:
    config = load_config("guess-number")
    roles = [bundle.role for bundle in bundles_of(config)]
    assert roles == ["rollout-0", "learner-0", "critic-0", "environment", "reward"]
    assert [bundle.role for bundle in learning_bundles_of(config)] == ["learner-0", "critic-0"]
    assert [bundle.role for bundle in serving_bundles_of(config)] == ["rollout-0", "environment", "reward"]
    assert config.logical_cpus() == pytest.approx(sum(bundle.cpus for bundle in bundles_of(config)))
    assert config.logical_cpus() <= 2


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("guess-number", "--environment=null", "game of several turns: set environment.type to guess-number"),
        ("quickstart", "--data.train=[{type: environment}]", "are numbers, and an environment makes"),
        ("guess-number", "--environment.max_turn_tokens=64", "exceeds rollout.max_response_tokens 32"),
        ("quickstart", "--environment={type: guess-number}", "max_turn_tokens"),
        ("quickstart", CUSTOM % "range: [-1, 1]", "with an environment: environment.range"),
        (
            "quickstart",
            CUSTOM % "scored_by: function, range: [0, 1]",  # 1 + 1
            "with an environment: environment.range",
        ),
        ("quickstart", CUSTOM.replace("games:Game", "games.py") % "", "is not an import path"),
        ("guess-number", "--algorithm.overlong.buffer_tokens=4", "set algorithm.overlong to null"),
    ],
)
def test_what_cannot_work_is_refused(recipe: str, override: str, message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        load_config(recipe, [override])


def test_a_function_alone_decides_the_range_unless_parts_are_declared() -> None:
    """A sum of [0, 1] and undeclared parts of [0, 1] would end at 2, so that 1 is never solved."""
    algorithm = "--algorithm.type=reinforce"
    alone, with_parts, parts = (
        load_config("quickstart", [algorithm, CUSTOM % more]).reward_range
        for more in ("scored_by: function", "scored_by: function, range: [-0.5, 0]", "range: [0, 2]")
    )
    assert (alone, with_parts, parts) == ((0.0, 1.0), (-0.5, 1.0), (0.0, 2.0))
    assert load_config("quickstart", [algorithm, CUSTOM % "role: user"]).reward_range == (0.0, 1.0)


def test_a_resumed_run_has_the_same_rules() -> None:
    config = load_config("guess-number")
    kept = resumable_settings(config)
    assert kept["environment.max_turns"] == 4 and "environment.processes" not in kept
    assert resumable_settings(load_config("quickstart"))["environment"] is None
