"""REINFORCE with the batch's mean reward as the baseline (Williams 1992, Machine Learning 8; for LLMs arXiv 2402.14740).

    A_i = R_i - mean(R)      over all samples of the step

The simplest baseline: the same for easy and hard prompts. One scalar a response, the same for each of its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, RewardedSample


class REINFORCESettings(AlgorithmSettings):
    """REINFORCE: advantage = reward minus the mean reward of the step (arXiv 2402.14740)."""

    type: Literal["reinforce"] = "reinforce"


def advantages(samples: Sequence[RewardedSample], settings: REINFORCESettings) -> list[Advantage]:
    """One number a response; of a single sample, 0."""
    mean = math.fsum(sample.reward for sample in samples) / max(1, len(samples))
    return [sample.reward - mean for sample in samples]
