"""The verifier interface: `(response, ground_truth, extra) -> (reward, reason)` with a declared
range.

A verifier is a pure function that may be slow, hang or crash, so it runs in a confined process
(`sppo_ray.rewards.pool.pool`), never in the calling process. Reasons are a few constant words,
because metrics count them: "correct", "wrong", "partial", "no_answer", and those of each verifier.

When a verifier fails, either the answer or the ground truth is the cause. With `failure_is_wrong`
the pool then tries the ground truth alone. If that works, the answer caused the failure and is
wrong ("failed", "timeout", "crash", "out_of_memory"), so a policy cannot avoid a score of 0 by
breaking the verifier. In all other cases the sample is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sppo_ray.errors import UserError
from sppo_ray.rewards.extract import final_answer

VerifierFunction = Callable[[str, str, Mapping[str, Any]], tuple[float, str]]
AnswerFunction = Callable[[str], str | None]
TruthFunction = Callable[[str, Mapping[str, Any]], object]
Walls = Literal["none", "wanted", "required"]


class BadGroundTruth(ValueError):
    """The ground truth or the row's extra data is unusable: an error in the data, independent of
    the answer.
    """


class RewardRangeError(UserError):
    """A reward is outside the declared range. The run stops, because the critic's cross-entropy
    would be wrong.
    """


@dataclass(frozen=True, slots=True)
class Verifier:
    """A verifier function with its name and declared range.

    `answer(response)` returns the answer in a response in a canonical form, or None. It is defined
    in the verifier's module; maj@k votes on it.
    """

    name: str
    function: VerifierFunction
    low: float = 0.0
    high: float = 1.0
    answer: AnswerFunction = final_answer
    failure_is_wrong: bool = False
    """Whether an answer scores 0 when it makes the verifier fail, hang or crash and the ground
    truth alone does not.
    """
    truth_alone: TruthFunction | None = None
    """Raises when (ground_truth, extra) is unusable. None: the boxed ground truth is scored as an
    answer.
    """
    walls: Walls = "wanted"
    """Confinement of the process that reads answers. If the kernel lacks a mechanism, "wanted"
    continues with a warning, and "required" refuses.
    """
    reads_import_path: bool = False
    """Whether that process may read the directories of the import path; it may always read the
    Python installation.
    """

    def try_truth(self, ground_truth: str, extra: Mapping[str, Any]) -> None:
        """Check the ground truth alone, without an answer. Raises when the ground truth is at
        fault.
        """
        if self.truth_alone is not None:
            self.truth_alone(ground_truth, extra)
        else:
            self.function(f"\\boxed{{{ground_truth}}}", ground_truth, extra)

    def score(self, response: str, ground_truth: str, extra: Mapping[str, Any]) -> tuple[float, str]:
        """Return reward and reason. Raises RewardRangeError naming the sample, and any error of the
        function.
        """
        reward, reason = self.function(response, ground_truth, extra)
        if not (math.isfinite(reward) and self.low <= reward <= self.high):
            raise RewardRangeError(
                f"reward function {self.name} returned {reward} for the response {_shorten(response)} "
                "(ground truth "
                f"{_shorten(ground_truth)}), outside its declared range [{self.low:g}, {self.high:g}]: a "
                "reward is never "
                "clipped, so correct the function, or declare the range it has and rescale it to [0, 1]"
            )
        return float(reward), reason


def _shorten(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}")
