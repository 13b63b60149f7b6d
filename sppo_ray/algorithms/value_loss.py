"""Sequence-Level PPO's critic loss (arXiv 2604.08865): binary cross-entropy of the value logit with the reward.

    L = mean_i BCE(sigmoid(value_logit_i), R_i),   R in [0, 1]

Its minimum is value = E[R | prompt], also for fractional rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from sppo_ray.errors import UserError


class ValueLoss(NamedTuple):
    """This part's share; `loss` and `sums` add up over parts to the means of the global batch."""

    loss: Tensor  # scalar, differentiable
    sums: dict[str, Tensor]  # scalars, detached


def check_rewards(rewards: Sequence[float]) -> None:
    """Raise UserError naming the first reward that is not a number in [0, 1] (a NaN is not one)."""
    for index, reward in enumerate(rewards):
        if not 0.0 <= reward <= 1.0:
            raise UserError(
                f"critic update: reward {reward!r} of sample {index} lies outside [0, 1], where binary cross-entropy is "
                "defined: rescale the reward function to [0, 1]"
            )


def value_loss(value_logits: Tensor, rewards: Tensor, *, num_global_samples: int) -> ValueLoss:
    """BCE of [B] logits with [B] rewards, divided by the global batch's size.

    Sums (each divided by num_global_samples): value_mean, reward_mean, brier = (value - reward)^2, and the raw
    moments reward_square and error_mean = reward - value, from which the caller gets the explained variance.

    Raises:
        UserError: a reward outside [0, 1].
    """
    check_rewards(rewards.tolist())
    loss = binary_cross_entropy_with_logits(value_logits, rewards, reduction="sum") / num_global_samples
    with torch.no_grad():
        values = value_logits.sigmoid()
        error = rewards - values
        moments = {
            "value_mean": values,
            "reward_mean": rewards,
            "reward_square": rewards.square(),
            "error_mean": error,
            "brier": error.square(),
        }
        sums = {name: moment.sum() / num_global_samples for name, moment in moments.items()}
    return ValueLoss(loss, sums)


def explained_variance(*, reward_mean: float, reward_square: float, error_mean: float, brier: float) -> float:
    """1 - Var(R - V) / Var(R): 0 = no better than a constant, 1 = perfect. 0 where the rewards do not vary."""
    variance = reward_square - reward_mean**2
    if variance <= 1e-12:
        return 0.0
    return 1.0 - (brier - error_mean**2) / variance
