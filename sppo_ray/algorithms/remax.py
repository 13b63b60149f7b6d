"""ReMax (arXiv 2310.10505): the baseline is the reward of the greedy response to the same prompt.

    A = R(response) - R(greedy response)

All tokens of a response have the same advantage. The greedy response is generated and scored but
not trained on, so every prompt costs one additional response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, RewardedSample


class ReMaxSettings(AlgorithmSettings):
    """ReMax: advantage = reward - reward of the prompt's greedy response (arXiv 2310.10505)."""

    type: Literal["remax"] = "remax"


def advantages(samples: Sequence[RewardedSample], settings: ReMaxSettings) -> list[Advantage]:
    """Return reward - baseline_reward of each sample, in order.

    Raises:
        ValueError: a sample has no baseline_reward.
    """
    return [sample.reward - _baseline_of(sample) for sample in samples]


def _baseline_of(sample: RewardedSample) -> float:
    if sample.baseline_reward is None:
        raise ValueError(f"{sample.group}: ReMax needs the reward of the greedy response")
    return sample.baseline_reward
