"""REINFORCE Leave-One-Out (arXiv 2402.14740): the baseline is the mean of the other samples.

    A_i = R_i - mean_{j != i} R_j = G / (G - 1) (R_i - mean(R))      over the G samples of a prompt

All tokens of a response have the same advantage. The baseline does not depend on R_i, so the
gradient is unbiased. The advantage is 0 when only one sample of the group was scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, DynamicSamplingSettings, RewardedSample
from sppo_ray.algorithms.groups import by_group


class RLOOSettings(AlgorithmSettings):
    """RLOO: advantage = reward - mean reward of the prompt's other samples (arXiv 2402.14740)."""

    type: Literal["rloo"] = "rloo"
    dynamic_sampling: DynamicSamplingSettings | None = None

    @property
    def sampling_rounds(self) -> int:
        return 1 if self.dynamic_sampling is None else self.dynamic_sampling.max_rounds


def advantages(samples: Sequence[RewardedSample], settings: RLOOSettings) -> list[Advantage]:
    """Return one number per response, in the order of `samples`.

    `samples` hold whole groups. The samples of a group need not be adjacent.
    """
    return by_group(samples, _leave_one_out)


def _leave_one_out(rewards: list[float]) -> list[float]:
    if len(rewards) == 1:
        return [0.0]
    total = math.fsum(rewards)
    return [reward - (total - reward) / (len(rewards) - 1) for reward in rewards]
