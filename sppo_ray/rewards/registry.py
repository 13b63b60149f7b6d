"""Builds the verifier that the settings choose (`reward.function`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sppo_ray import plugins
from sppo_ray.config import (
    CodeReward,
    CustomReward,
    MathReward,
    PickledReward,
    PluginReward,
    ReasoningGymReward,
    RewardFunction,
    RunningSumReward,
    UserReward,
)
from sppo_ray.rewards.base import AnswerFunction, Verifier, VerifierFunction, Walls
from sppo_ray.rewards.extract import final_answer


def build_verifier(settings: RewardFunction, deadline_s: float = math.inf) -> Verifier:
    """Build the verifier that `reward.function` names. `deadline_s`: the pool's, for a sample.
    Raises UserError when that fails (e.g. a custom import path).
    """
    if isinstance(settings, CodeReward):
        return _build_code(settings, deadline_s)
    if isinstance(settings, PluginReward):
        return _build_plugin(settings)
    return _BUILDERS[settings.type](settings)


# Each builder imports its own module: reasoning-gym takes two seconds, and most runs do not need
# it.


def _build_math(settings: MathReward) -> Verifier:
    from sppo_ray.rewards.math import answer, make_math_verifier, try_truth

    verify = make_math_verifier(settings.extract)
    return Verifier(settings.type, verify, answer=answer, failure_is_wrong=True, truth_alone=try_truth)


def _build_running_sum(settings: RunningSumReward) -> Verifier:
    from sppo_ray.rewards.running_sum import answer, verify_running_sum

    return Verifier(settings.type, verify_running_sum, answer=answer, failure_is_wrong=True)


def _build_reasoning_gym(settings: ReasoningGymReward) -> Verifier:
    from sppo_ray.rewards.reasoning_gym.verifier import (
        answer,
        make_reasoning_gym_verifier,
        try_entry,
        warm_up,
    )

    warm_up()
    verify = make_reasoning_gym_verifier(full_only=settings.full_only)
    return Verifier(settings.type, verify, answer=answer, failure_is_wrong=True, truth_alone=try_entry)


def _build_code(settings: CodeReward, deadline_s: float) -> Verifier:
    from sppo_ray.rewards.code.sandbox.run import ConfinedProcesses
    from sppo_ray.rewards.code.verifier import answer, make_code_verifier

    sandbox = ConfinedProcesses(deadline_s)
    sandbox.check()
    verify = make_code_verifier(settings, sandbox)
    # It runs no code itself: each program runs in a sandbox, which a confined process could not
    # start.
    return Verifier(settings.type, verify, answer=answer, walls="none")


def _build_custom(settings: CustomReward) -> Verifier:
    from sppo_ray.rewards.custom import load_custom_answer, load_custom_verifier

    verify = load_custom_verifier(settings.function, settings.packages)
    return _of_user(settings, settings.function, verify, load_custom_answer(settings.function))


def _build_pickled(settings: PickledReward) -> Verifier:
    from sppo_ray.rewards.custom import verifier_of
    from sppo_ray.rewards.pickled import load_function

    function, name = load_function(settings)
    return _of_user(settings, name, verifier_of(function, name), final_answer)


def _build_plugin(settings: PluginReward) -> Verifier:
    from sppo_ray.rewards.custom import verifier_of

    verify = verifier_of(plugins.load("rewards", settings.type), settings.type)
    return _of_user(settings, settings.type, verify, final_answer)


def _of_user(settings: UserReward, name: str, verify: VerifierFunction, answer: AnswerFunction) -> Verifier:
    low, high = settings.range
    walls: Walls = "required" if settings.confined else "none"
    return Verifier(name, verify, low, high, answer, walls=walls, reads_import_path=True)


_BUILDERS: dict[str, Callable[[Any], Verifier]] = {
    "math": _build_math,
    "running-sum": _build_running_sum,
    "reasoning-gym": _build_reasoning_gym,
    "custom": _build_custom,
    "pickled": _build_pickled,
}
