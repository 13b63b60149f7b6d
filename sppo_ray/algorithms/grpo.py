"""Group Relative Policy Optimization (arXiv 2402.03300): the other samples of the same prompt are the baseline.

    A_i = (R_i - mean(R)) / (std(R) + 1e-4)      over the G samples of a prompt, the same for each token of a response

std is the sample standard deviation (divisor G - 1), and 1e-4 as in TRL. With `normalize_std: false` the division is left
out; together with `loss_aggregation: constant` that is Dr.GRPO (arXiv 2503.20783). A group in which all rewards are equal,
or of which only one sample was scored, has advantage 0.
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
    """GRPO: advantage = reward, centred and scaled within the samples of a prompt (arXiv 2402.03300)."""

    type: Literal["grpo"] = "grpo"
    normalize_std: bool = True
    """Divide by the group's standard deviation. false with loss_aggregation constant = Dr.GRPO (arXiv 2503.20783)."""
    dynamic_sampling: DynamicSamplingSettings | None = None


def advantages(samples: Sequence[RewardedSample], settings: GRPOSettings) -> list[Advantage]:
    """One number a response. Samples of a group need not stand together."""
    return by_group(samples, lambda rewards: _relative(rewards, normalize=settings.normalize_std))


def _relative(rewards: list[float], *, normalize: bool) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if not normalize:
        return centred
    deviation = math.sqrt(math.fsum(value * value for value in centred) / max(1, len(rewards) - 1))
    return [value / (deviation + EPSILON) for value in centred]
