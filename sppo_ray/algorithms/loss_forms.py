"""Loss forms that weight the gradient of each token: DIS, DPPO and CISPO.

    L = - sum_t w_t * c_t * g_t * A_t * log pi_t        the gradient does not pass through g_t

    dis    g = r if low < r < high else 0                              r = pi / pi_engine
    dppo   g = 0 if A > 0 and pi - pi_engine > divergence
               0 if A <= 0 and pi - pi_engine < -divergence
               min(r, high) else                                       r = pi / pi_engine
    cispo  g = clip(r, low, high)                                      r = pi / pi_old

Without the detached g_t the factor log pi_t would add a term (1 + log pi_t), which reverses the
gradient of rare tokens. Log-ratios are clamped before the exponential, so a token that left its
bounds by far cannot produce inf or NaN. w_t and c_t are those of `policy_loss`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sppo_ray.algorithms.loss_settings import LossForm


class TokenWeights(NamedTuple):
    """g_t of N tokens, without gradient, with what the bounds did."""

    weights: Tensor  # [N] float32, 0 = masked
    log_ratio: Tensor  # [N] float32, log r
    low: Tensor  # [N] bool, changed by the lower bound
    high: Tensor  # [N] bool, changed by the upper bound


@torch.no_grad()
def gradient_weights(
    form: LossForm, logprobs: Tensor, old_logprobs: Tensor, rollout_logprobs: Tensor, advantages: Tensor
) -> TokenWeights:
    """Return g_t.

    Args:
        logprobs: [N] float32, log-probs of the policy.
        old_logprobs: [N] float32, log pi_old.
        rollout_logprobs: [N] float32, log-probs of the engine.
        advantages: [N] float32.
    """
    log_ratio = logprobs - (old_logprobs if form.type == "cispo" else rollout_logprobs)
    if form.type == "dppo":
        moved = logprobs.exp() - rollout_logprobs.exp()
        high = (advantages > 0) & (moved > form.divergence)
        low = (advantages <= 0) & (moved < -form.divergence)
        weights = _bounded_ratio(log_ratio, 0.0, form.high)
        return TokenWeights(torch.where(low | high, 0.0, weights), log_ratio, low, high)
    weights = _bounded_ratio(log_ratio, form.low, form.high)
    if form.type == "cispo":
        return TokenWeights(weights, log_ratio, log_ratio < _log(form.low), log_ratio > _log(form.high))
    low, high = log_ratio <= _log(form.low), log_ratio >= _log(form.high)
    return TokenWeights(torch.where(low | high, 0.0, weights), log_ratio, low, high)


def weighted_objective(weights: Tensor, advantages: Tensor, logprobs: Tensor) -> Tensor:
    """Return g_t A_t log pi_t, [N] float32. A masked token contributes 0, even if log pi_t is -inf
    or NaN.
    """
    kept = weights > 0
    return torch.where(kept, weights * advantages, 0.0) * torch.where(kept, logprobs, 0.0)


def _bounded_ratio(log_ratio: Tensor, low: float, high: float) -> Tensor:
    return log_ratio.clamp(_log(low), _log(high)).exp()


def _log(bound: float) -> float:
    return math.log(bound) if bound > 0 else -math.inf
