"""The verifier contract: a plain function `(response, ground_truth, extra) -> (reward, reason)` with a declared range.

A verifier is pure and may be slow, hang or crash: it runs in a process of its own (`sppo_ray.rewards.pool`), never in
the process that asks. Reasons are a handful of constant words, because metrics count them: "correct", "wrong",
"partial", "no_answer", and what a verifier adds; a failure to decide is an exception, never a reward of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sppo_ray.config import CodeReward, CustomReward, MathReward, ReasoningGymReward, RewardFunction, RunningSumReward
from sppo_ray.errors import UserError
from sppo_ray.rewards.extract import final_answer

VerifierFunction = Callable[[str, str, Mapping[str, Any]], tuple[float, str]]
AnswerFunction = Callable[[str], str | None]


class RewardRangeError(UserError):
    """A reward outside the declared range: the critic's cross-entropy would be wrong, so the run stops."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """A verifier function with its name and the range it declares.

    `answer(response)` is the answer that it reads in a response, in one form for all ways to write it; None = there is
    none. It stands beside the verifier in its module, and maj@k votes on it.
    """

    name: str
    function: VerifierFunction
    low: float = 0.0
    high: float = 1.0
    answer: AnswerFunction = final_answer

    def score(self, response: str, ground_truth: str, extra: Mapping[str, Any]) -> tuple[float, str]:
        """Reward and reason. Raises RewardRangeError naming the sample; whatever the function raises passes through."""
        reward, reason = self.function(response, ground_truth, extra)
        if not (math.isfinite(reward) and self.low <= reward <= self.high):
            raise RewardRangeError(
                f"reward function {self.name} returned {reward} for the response {_shorten(response)} (ground truth "
                f"{_shorten(ground_truth)}), outside its declared range [{self.low:g}, {self.high:g}]: a reward is never "
                "clipped, so correct the function, or declare the range it has and rescale it to [0, 1]"
            )
        return float(reward), reason


def build_verifier(settings: RewardFunction) -> Verifier:
    """The verifier that `reward.function` names. Raises UserError when it cannot be built (a custom import path)."""
    return _BUILDERS[settings.type](settings)


# Each builder imports its own module: SymPy costs half a second and reasoning-gym two, and a run needs one of them.


def _build_math(settings: MathReward) -> Verifier:
    from sppo_ray.rewards.math import answer, verify_math, warm_up

    warm_up()
    return Verifier(settings.type, verify_math, answer=answer)


def _build_running_sum(settings: RunningSumReward) -> Verifier:
    from sppo_ray.rewards.running_sum import answer, verify_running_sum

    return Verifier(settings.type, verify_running_sum, answer=answer)


def _build_reasoning_gym(settings: ReasoningGymReward) -> Verifier:
    from sppo_ray.rewards.reasoning_gym import answer, make_reasoning_gym_verifier

    return Verifier(settings.type, make_reasoning_gym_verifier(full_only=settings.full_only), answer=answer)


def _build_code(settings: CodeReward) -> Verifier:
    from sppo_ray.rewards.code import answer, make_code_verifier
    from sppo_ray.rewards.sandbox.run import check_sandbox

    check_sandbox()
    return Verifier(settings.type, make_code_verifier(settings), answer=answer)


def _build_custom(settings: CustomReward) -> Verifier:
    from sppo_ray.rewards.custom import load_custom_answer, load_custom_verifier

    low, high = settings.range
    verify = load_custom_verifier(settings.function, settings.packages)
    return Verifier(settings.function, verify, low, high, load_custom_answer(settings.function))


_BUILDERS: dict[str, Callable[[Any], Verifier]] = {
    "math": _build_math,
    "running-sum": _build_running_sum,
    "reasoning-gym": _build_reasoning_gym,
    "code": _build_code,
    "custom": _build_custom,
}


def _shorten(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}")
