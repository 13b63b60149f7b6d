"""Group Relative Policy Optimization (arXiv 2402.03300): the baseline is the prompt's mean reward.

    A_i = (R_i - mean(R)) / (std(R) + 1e-4)      over the G samples of a prompt

All tokens of a response have the same advantage. std is the sample standard deviation (divisor
G - 1); 1e-4 is the constant of TRL. `normalize_std: false` omits the division; with
`loss_aggregation: constant` the algorithm is Dr.GRPO (arXiv 2503.20783). The advantages of a group
are 0 when all its rewards are equal or only one of its samples was scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, DynamicSamplingSettings, RewardedSample
from sppo_ray.algorithms.groups import by_group

EPSILON = 1e-4
"""Added to the standard deviation."""


class GRPOSettings(AlgorithmSettings):
    """GRPO: advantage = reward, centred and scaled over a prompt's samples (arXiv 2402.03300)."""

    type: Literal["grpo"] = "grpo"
    normalize_std: bool = True
    """Divide by the group's standard deviation. false and loss_aggregation constant give Dr.GRPO
    (arXiv 2503.20783).
    """
    dynamic_sampling: DynamicSamplingSettings | None = None

    @property
    def sampling_rounds(self) -> int:
        return 1 if self.dynamic_sampling is None else self.dynamic_sampling.max_rounds


def advantages(samples: Sequence[RewardedSample], settings: GRPOSettings) -> list[Advantage]:
    """Return one number per response, in the order of `samples`.

    `samples` hold whole groups. The samples of a group need not be adjacent.
    """
    return by_group(samples, lambda rewards: _relative(rewards, normalize=settings.normalize_std))


def _relative(rewards: list[float], *, normalize: bool) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if not normalize:
        return centred
    deviation = math.sqrt(math.fsum(value * value for value in centred) / max(1, len(rewards) - 1))
    return [value / (deviation + EPSILON) for value in centred]
