"""REINFORCE (Williams 1992, Machine Learning 8; for LLMs arXiv 2402.14740).

    A_i = R_i - mean(R)      over all samples of the step

The baseline is the step's mean reward, equal for easy and hard prompts. All tokens of a response
have the same advantage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, RewardedSample


class REINFORCESettings(AlgorithmSettings):
    """REINFORCE: advantage = reward - mean reward of the step (arXiv 2402.14740)."""

    type: Literal["reinforce"] = "reinforce"

    @property
    def centers(self) -> bool:
        return True


def advantages(samples: Sequence[RewardedSample], settings: REINFORCESettings) -> list[Advantage]:
    """Return one number per response, in the order of `samples`; 0 for a single sample."""
    mean = math.fsum(sample.reward for sample in samples) / max(1, len(samples))
    return [sample.reward - mean for sample in samples]
