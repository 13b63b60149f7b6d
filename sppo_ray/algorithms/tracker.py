"""A tracker of each prompt's success from its own past rewards (SPO, arXiv 2509.13232).

    rate = a / (a + b),   weight = a + b
    after a reward R in [0, 1]:  a <- rho a + R,  b <- rho b + 1 - R

The weight is the number of rewards that the rate is worth. It tends to 1 / (1 - rho), because a
policy that learns makes old rewards wrong. Without a critic a prompt starts at a = b = 1/2.

With a prompt critic the two are blended by estimated variances (empirical Bayes):

    baseline = V + share (rate - V)          share = tau2 / (tau2 + c p (1 - p) / weight)
    tau2 = E[(R - V)(rate - V)]              squared error of the critic
    c    = (E[(rate - V)^2] - tau2) / E[p (1 - p) / weight], at least 1
    p    = (weight rate + V) / (weight + 1)

R is a fresh draw, so the first moment is the critic's squared error as long as V has not learned
the noise of the past rewards. When it has, the moment is smaller and so is the share. c is how much
worse than its sampling noise the rate is, because the policy has moved since. The means are over
the samples of past steps, each in proportion to the weight of its rate, and a step counts DECAY of
the next one. A prompt without past rewards has baseline V.

The history of a sample is read before its step's rewards are counted, so the baseline does not
depend on the response and the gradient stays unbiased.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sppo_ray.types import PromptHistory

PRIOR = 0.5
"""a and b of a prompt without rewards, when there is no critic."""
DECAY = 0.9
"""Weight of the past in the means, each step."""


@dataclass(frozen=True, slots=True)
class TrackedReward:
    """A reward with what was known of its prompt before it."""

    prompt_id: str
    reward: float  # in [0, 1]
    value: float | None  # of the prompt critic, in [0, 1]; None without a critic
    history: PromptHistory


class PromptTracker:
    """The state of all prompts, by prompt id."""

    def __init__(self, rho: float, *, has_critic: bool) -> None:
        self._rho = rho
        self._prior = 0.0 if has_critic else PRIOR
        self._cells: dict[str, tuple[float, float]] = {}
        # Sums over samples, times the weight of the rate: 1, (R - V)(rate - V), (rate - V)^2 and
        # p (1 - p) / weight.
        self._sums = [0.0] * 4

    def __len__(self) -> int:
        """Return the number of prompts with a reward."""
        return len(self._cells)

    def history(self, prompt_id: str, value: float | None) -> PromptHistory:
        """Return the history of a prompt. `value` is the prompt critic's; None without a critic."""
        share_unseen = 1.0 if value is None else 0.0
        if prompt_id not in self._cells:
            return PromptHistory(PRIOR, 0.0, share_unseen)
        a, b = self._cells[prompt_id]
        rate, weight = a / (a + b), a + b
        return PromptHistory(rate, weight, 1.0 if value is None else self._share(rate, weight, value))

    def learn(self, rewards: Iterable[TrackedReward]) -> None:
        """Count the rewards of a step, in order."""
        sums = [DECAY * total for total in self._sums]
        for one in rewards:
            rate, weight, value = one.history.rate, one.history.weight, one.value
            if value is not None and weight > 0.0:
                terms = 1.0, (one.reward - value) * (rate - value), (rate - value) ** 2
                for index, term in enumerate((*terms, _noise(rate, weight, value))):
                    sums[index] += weight * term
            a, b = self._cells.get(one.prompt_id, (self._prior, self._prior))
            self._cells[one.prompt_id] = self._rho * a + one.reward, self._rho * b + 1.0 - one.reward
        self._sums = sums

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return {"cells": self._cells, "sums": self._sums}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Replace the state by one of `to_dict`."""
        self._cells = {prompt_id: (a, b) for prompt_id, (a, b) in state["cells"].items()}
        self._sums = list(state["sums"])

    def _share(self, rate: float, weight: float, value: float) -> float:
        total, error, distance, noise = self._sums
        if error <= 0.0:  # no sign that the critic is wrong
            return 0.0
        inflation = max(1.0, (distance - error) / noise) if noise > 0.0 else 1.0
        critic = error / total
        return critic / (critic + inflation * _noise(rate, weight, value))


def _noise(rate: float, weight: float, value: float) -> float:
    """Return the variance of a rate of `weight` rewards, p (1 - p) / weight."""
    p = (weight * rate + value) / (weight + 1.0)
    return p * (1.0 - p) / weight
