"""Sequence-Level PPO (arXiv 2604.08865): a contextual bandit whose action is the whole response.

    A = R - V(prompt),   V = sigmoid(value_logit),   R in [0, 1]

All tokens of a response have the same advantage. It is neither whitened nor discounted. It does not
depend on other samples, so it can be computed as soon as the response is scored.

    A_i <- A_i - mean(A)      over all samples of the step, with `center`

takes out the error that all values share: a new critic says 0.5 of every prompt, and where most
are hopeless it takes some steps until it does not. With `center` "negative" this is done only where
mean(A) < 0: values that lag behind a policy which improves make its successes more likely.

With `tracker` the baseline is V + share (rate - V), a blend of V with the prompt's own past success
rate (`tracker`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, RewardedSample, TrackerSettings


class SPPOSettings(AlgorithmSettings):
    """Sequence-Level PPO: advantage = reward - value(prompt), clipped per-token ratios (arXiv
    2604.08865).
    """

    type: Literal["sppo"] = "sppo"
    tracker: TrackerSettings | None = None
    """Blend the critic's value with the prompt's own past success rate; null = off."""
    center: bool | Literal["negative"] = False
    """Subtract the mean advantage of the step, so that only the differences between values count
    and not their level: true = in every step, negative = where the mean is below 0, that is, where
    the values are too high. A step's updates then begin with its last sample.
    """

    @property
    def tracked(self) -> TrackerSettings | None:
        return self.tracker

    @property
    def centers(self) -> bool:
        return self.center is not False


def advantages(samples: Sequence[RewardedSample], settings: SPPOSettings) -> list[Advantage]:
    """Return reward - baseline of each sample, in order; with `center`, less their mean.

    Rewards and baselines are in [0, 1], so advantages are in [-1, 1], centered ones in [-2, 2].

    Raises:
        ValueError: a sample has no value.
    """
    raw = [sample.reward - _baseline_of(sample) for sample in samples]
    if not settings.centers:
        return raw
    mean = math.fsum(raw) / max(1, len(raw))
    level = min(0.0, mean) if settings.center == "negative" else mean
    return [advantage - level for advantage in raw]


def _baseline_of(sample: RewardedSample) -> float:
    if sample.value is None:
        raise ValueError(f"{sample.group}: Sequence-Level PPO needs the prompt critic's value")
    if sample.history is None:
        return sample.value
    return sample.value + sample.history.share * (sample.history.rate - sample.value)
