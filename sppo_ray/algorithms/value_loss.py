"""Losses of the critics.

    prompt critic: L = mean_i BCE(sigmoid(value_logit_i), R_i),   R_i in [0, 1]
                   over prompts i, rewards R_i (arXiv 2604.08865)
    token critic:  L = mean_t (V_t - G_t)^2 / 2   or   mean_t BCE(sigmoid(value_logit_t), G_t)
                   over response tokens t, returns G_t (arXiv 1707.06347)

Each loss is minimal at the expected reward or return, also when rewards are fractions.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from sppo_ray.errors import UserError


class ValueLoss(NamedTuple):
    """The loss and metrics of a part of the global batch. Added over all parts, they give the means
    of the global batch.
    """

    loss: Tensor  # scalar, differentiable
    sums: dict[str, Tensor]  # scalars, detached


def check_rewards(rewards: np.ndarray, of: str = "sample") -> None:
    """Raise UserError for the first of `rewards`, [R] float32, outside [0, 1], NaN included.

    `of` names the items in the message: "sample" or "token".
    """
    outside = np.flatnonzero(~((rewards >= 0.0) & (rewards <= 1.0)))
    if len(outside):
        index = outside[0]
        raise UserError(
            f"critic update: reward {rewards[index].item()!r} of {of} {index} lies outside [0, 1], where "
            "binary cross-entropy is "
            "defined: rescale the reward function to [0, 1]"
        )


def value_loss(value_logits: Tensor, rewards: Tensor, *, num_global_samples: int) -> ValueLoss:
    """Compute the loss of a prompt critic: binary cross-entropy, summed and divided by
    `num_global_samples`.

    Args:
        value_logits: [B] float32, outputs of the value head, with gradient.
        rewards: [B] float32, in [0, 1].
        num_global_samples: samples of the global batch.

    Returns:
        The loss in nats. The sums, also divided by `num_global_samples`: value_mean, reward_mean,
        brier = (value - reward)^2, reward_square = reward^2 and error_mean = reward - value.
        `explained_variance` combines them.

    Raises:
        UserError: a reward is outside [0, 1].
    """
    check_rewards(rewards.cpu().numpy())
    loss = binary_cross_entropy_with_logits(value_logits, rewards, reduction="sum") / num_global_samples
    return ValueLoss(loss, _moments(value_logits.detach().sigmoid(), rewards, num_global_samples))


def token_value_loss(
    outputs: Tensor, returns: Tensor, *, kind: Literal["mse", "bce"], num_global_tokens: int
) -> ValueLoss:
    """Compute the loss of a token critic, summed over tokens and divided by `num_global_tokens`.

    Args:
        outputs: [N] float32, outputs of the value head, with gradient. They are values for mse and
            value logits for bce.
        returns: [N] float32, the targets.
        kind: half the squared error, or binary cross-entropy.
        num_global_tokens: response tokens of the global batch.

    Returns:
        The loss, and the sums of `value_loss` per token. In their names "reward" means the return
        and "brier" the squared error.

    Raises:
        UserError: `kind` is bce and a return is outside [0, 1].
    """
    if kind == "bce":
        check_rewards(returns.cpu().numpy(), of="token")
        loss = binary_cross_entropy_with_logits(outputs, returns, reduction="sum")
        values = outputs.detach().sigmoid()
    else:
        loss = (outputs - returns).square().sum() / 2
        values = outputs.detach()
    return ValueLoss(loss / num_global_tokens, _moments(values, returns, num_global_tokens))


def explained_variance(*, reward_mean: float, reward_square: float, error_mean: float, brier: float) -> float:
    """Return 1 - Var(R - V) / Var(R) from the moments of `value_loss`.

    1 = perfect, 0 = no better than a constant. It is 0 when the rewards do not vary.
    """
    variance = reward_square - reward_mean**2
    if variance <= 1e-12:
        return 0.0
    return 1.0 - (brier - error_mean**2) / variance


def _moments(values: Tensor, targets: Tensor, count: int) -> dict[str, Tensor]:
    """Return the moments of detached tensors, each divided by `count`."""
    error = targets - values
    moments = {
        "value_mean": values,
        "reward_mean": targets,
        "reward_square": targets.square(),
        "error_mean": error,
        "brier": error.square(),
    }
    return {name: moment.sum() / count for name, moment in moments.items()}
