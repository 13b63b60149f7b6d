"""Sequence-Level PPO (arXiv 2604.08865): the whole response is one action of a contextual bandit.

    A = R - V(prompt),   V = sigmoid(value_logit),   R in [0, 1]

One scalar a response, the same for each of its tokens; neither whitened nor discounted. It needs no other sample, so
it is known the moment a response is scored.
"""

from __future__ import annotations

from collections.abc import Sequence


def advantages(rewards: Sequence[float], values: Sequence[float]) -> list[float]:
    """reward - value for each sample.

    Args:
        rewards: in [0, 1], one a sample.
        values: in [0, 1], the critic's probability that the policy solves the sample's prompt (not its logit).

    Returns:
        One advantage in [-1, 1] a sample.

    Raises:
        ValueError: the two differ in length.
    """
    return [reward - value for reward, value in zip(rewards, values, strict=True)]
