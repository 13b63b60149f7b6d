"""Sequence-Level PPO (arXiv 2604.08865): a contextual bandit whose action is the whole response.

    A = R - V(prompt),   V = sigmoid(value_logit),   R in [0, 1]

All tokens of a response have the same advantage. It is neither whitened nor discounted. It does not
depend on other samples, so it can be computed as soon as the response is scored.

With `tracker` the baseline is V + share (rate - V), a blend of V with the prompt's own past success
rate (`tracker`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, RewardedSample, TrackerSettings


class SPPOSettings(AlgorithmSettings):
    """Sequence-Level PPO: advantage = reward - value(prompt), clipped per-token ratios (arXiv
    2604.08865).
    """

    type: Literal["sppo"] = "sppo"
    tracker: TrackerSettings | None = None

    @property
    def tracked(self) -> TrackerSettings | None:
        return self.tracker


def advantages(samples: Sequence[RewardedSample], settings: SPPOSettings) -> list[Advantage]:
    """Return reward - baseline of each sample, in order.

    Rewards and baselines are in [0, 1], so advantages are in [-1, 1].

    Raises:
        ValueError: a sample has no value.
    """
    return [sample.reward - _baseline_of(sample) for sample in samples]


def _baseline_of(sample: RewardedSample) -> float:
    if sample.value is None:
        raise ValueError(f"{sample.group}: Sequence-Level PPO needs the prompt critic's value")
    if sample.history is None:
        return sample.value
    return sample.value + sample.history.share * (sample.history.rate - sample.value)
