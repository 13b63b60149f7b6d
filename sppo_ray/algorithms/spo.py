"""SPO: the baseline is the prompt's own past success rate (arXiv 2509.13232).

    A_i = R_i - rate(prompt)                      before R_i is counted
    A_i <- (A_i - mean(A)) / (std(A) + 1e-8)      over all samples of the step, with `normalize`

The rate comes from a tracker (`tracker`), not from a critic or a group. All tokens of a response
have the same advantage. `data.curriculum` draws prompts whose rate is uncertain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, RewardedSample, TrackerSettings
from sppo_ray.algorithms.reinforce_pp import normalised


class SPOSettings(AlgorithmSettings):
    """SPO: advantage = reward - the prompt's past success rate (arXiv 2509.13232)."""

    type: Literal["spo"] = "spo"
    tracker: TrackerSettings = TrackerSettings()
    normalize: bool = True
    """Scale the advantages of a step to mean 0 and standard deviation 1."""

    @property
    def tracked(self) -> TrackerSettings:
        return self.tracker

    @property
    def centers(self) -> bool:
        return self.normalize


def advantages(samples: Sequence[RewardedSample], settings: SPOSettings) -> list[Advantage]:
    """Return one number per response, in the order of `samples`.

    Raises:
        ValueError: a sample has no history.
    """
    raw = [sample.reward - _rate_of(sample) for sample in samples]
    return normalised(raw) if settings.normalize else raw


def _rate_of(sample: RewardedSample) -> float:
    if sample.history is None:
        raise ValueError(f"{sample.group}: SPO needs the prompt's past success rate")
    return sample.history.rate
