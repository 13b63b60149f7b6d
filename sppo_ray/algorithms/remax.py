"""ReMax (arXiv 2310.10505): the reward of the greedy response to the same prompt is the baseline.

    A = R(response) - R(greedy response)

One scalar a response, the same for each of its tokens. The greedy response is generated and scored, never trained on: every
prompt costs one response more than it yields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, RewardedSample


class ReMaxSettings(AlgorithmSettings):
    """ReMax: advantage = reward minus the reward of the greedy response to the same prompt (arXiv 2310.10505)."""

    type: Literal["remax"] = "remax"


def advantages(samples: Sequence[RewardedSample], settings: ReMaxSettings) -> list[Advantage]:
    """reward - baseline_reward of each sample.

    Raises:
        ValueError: a sample without the reward of its prompt's greedy response.
    """
    return [sample.reward - _baseline_of(sample) for sample in samples]


def _baseline_of(sample: RewardedSample) -> float:
    if sample.baseline_reward is None:
        raise ValueError(f"{sample.group}: ReMax needs the reward of the greedy response")
    return sample.baseline_reward
