"""What critics are trained by: the chance of success at the prompt (Sequence-Level PPO), or the return at each token (PPO).

    prompt critic: L = mean_i BCE(sigmoid(value_logit_i), R_i),   R in [0, 1]                      (arXiv 2604.08865)
    token critic:  L = mean_t (V_t - G_t)^2 / 2   or   mean_t BCE(sigmoid(value_logit_t), G_t)     (arXiv 1707.06347)

Their minimum is the expected reward or return, also for fractional ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from sppo_ray.errors import UserError


class ValueLoss(NamedTuple):
    """This part's share; `loss` and `sums` add up over parts to the means of the global batch."""

    loss: Tensor  # scalar, differentiable
    sums: dict[str, Tensor]  # scalars, detached


def check_rewards(rewards: Sequence[float], of: str = "sample") -> None:
    """Raise UserError naming the first reward that is not a number in [0, 1] (a NaN is not one)."""
    for index, reward in enumerate(rewards):
        if not 0.0 <= reward <= 1.0:
            raise UserError(
                f"critic update: reward {reward!r} of {of} {index} lies outside [0, 1], where binary cross-entropy is "
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
    return ValueLoss(loss, _moments(value_logits.detach().sigmoid(), rewards, num_global_samples))


def token_value_loss(outputs: Tensor, returns: Tensor, *, kind: Literal["mse", "bce"], num_global_tokens: int) -> ValueLoss:
    """Loss of a critic that values every response token, divided by the response tokens of the global batch.

    Args:
        outputs: [N] of the value head, with gradient: values (mse), or value logits (bce).
        returns: [N], the targets.

    Sums as those of `value_loss`, per token: "reward" is the return there, "brier" the squared error.

    Raises:
        UserError: bce, and a return outside [0, 1].
    """
    if kind == "bce":
        check_rewards(returns.tolist(), of="token")
        loss = binary_cross_entropy_with_logits(outputs, returns, reduction="sum")
        values = outputs.detach().sigmoid()
    else:
        loss = (outputs - returns).square().sum() / 2
        values = outputs.detach()
    return ValueLoss(loss / num_global_tokens, _moments(values, returns, num_global_tokens))


def explained_variance(*, reward_mean: float, reward_square: float, error_mean: float, brier: float) -> float:
    """1 - Var(R - V) / Var(R): 0 = no better than a constant, 1 = perfect. 0 where the rewards do not vary."""
    variance = reward_square - reward_mean**2
    if variance <= 1e-12:
        return 0.0
    return 1.0 - (brier - error_mean**2) / variance


def _moments(values: Tensor, targets: Tensor, count: int) -> dict[str, Tensor]:
    """Of detached tensors; each divided by `count`."""
    error = targets - values
    moments = {
        "value_mean": values,
        "reward_mean": targets,
        "reward_square": targets.square(),
        "error_mean": error,
        "brier": error.square(),
    }
    return {name: moment.sum() / count for name, moment in moments.items()}
