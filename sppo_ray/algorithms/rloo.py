"""REINFORCE Leave-One-Out (arXiv 2402.14740): the mean of a prompt's OTHER samples is the baseline.

    A_i = R_i - mean_{j != i} R_j = G / (G - 1) (R_i - mean(R))      over the G samples of a prompt

The baseline does not depend on R_i, so the gradient is unbiased. A group of which only one sample was scored has advantage 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, DynamicSamplingSettings, RewardedSample
from sppo_ray.algorithms.groups import by_group


class RLOOSettings(AlgorithmSettings):
    """RLOO: advantage = reward minus the mean reward of the prompt's other samples (arXiv 2402.14740)."""

    type: Literal["rloo"] = "rloo"
    dynamic_sampling: DynamicSamplingSettings | None = None


def advantages(samples: Sequence[RewardedSample], settings: RLOOSettings) -> list[Advantage]:
    """One number a response. Samples of a group need not stand together."""
    return by_group(samples, _leave_one_out)


def _leave_one_out(rewards: list[float]) -> list[float]:
    if len(rewards) == 1:
        return [0.0]
    total = math.fsum(rewards)
    return [reward - (total - reward) / (len(rewards) - 1) for reward in rewards]
