"""Sequence-Level PPO (arXiv 2604.08865): the whole response is one action of a contextual bandit.

    A = R - V(prompt),   V = sigmoid(value_logit),   R in [0, 1]

One scalar a response, the same for each of its tokens; neither whitened nor discounted. It needs no other sample, so
it is known the moment a response is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, RewardedSample


class SPPOSettings(AlgorithmSettings):
    """Sequence-Level PPO: advantage = reward - value(prompt), PPO clip on per-token ratios (arXiv 2604.08865)."""

    type: Literal["sppo"] = "sppo"


def advantages(samples: Sequence[RewardedSample], settings: SPPOSettings) -> list[Advantage]:
    """reward - value for each sample; rewards and values in [0, 1], advantages in [-1, 1].

    Raises:
        ValueError: a sample without a value.
    """
    return [sample.reward - _value_of(sample) for sample in samples]


def _value_of(sample: RewardedSample) -> float:
    if sample.value is None:
        raise ValueError(f"{sample.group}: Sequence-Level PPO needs the prompt critic's value")
    return sample.value
