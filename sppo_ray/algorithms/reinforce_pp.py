"""REINFORCE++ (arXiv 2501.03262): rewards, normalised over the whole step, not within a group.

    A_i = (R_i - mean(R)) / (std(R) + 1e-8)      over all samples of the step, std with divisor n

The paper also takes a k1 KL penalty off the reward, token by token; this is its form with
coefficient 0, in which all tokens of a response have the same advantage. `algorithm.kl` adds a
penalty to the loss instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, RewardedSample

EPSILON = 1e-8
"""Added to the standard deviation."""


class ReinforcePPSettings(AlgorithmSettings):
    """REINFORCE++: advantage = reward, centred and scaled over the step (arXiv 2501.03262)."""

    type: Literal["reinforce++"] = "reinforce++"

    @property
    def centers(self) -> bool:
        return True


def advantages(samples: Sequence[RewardedSample], settings: ReinforcePPSettings) -> list[Advantage]:
    """Return one number per response, in the order of `samples`; 0 when all rewards are equal."""
    return normalised([sample.reward for sample in samples])


def normalised(numbers: Sequence[float]) -> list[float]:
    """Scale numbers to mean 0 and standard deviation 1."""
    count = max(1, len(numbers))
    mean = math.fsum(numbers) / count
    centred = [number - mean for number in numbers]
    deviation = math.sqrt(math.fsum(number * number for number in centred) / count)
    return [number / (deviation + EPSILON) for number in centred]
