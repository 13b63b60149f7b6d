"""PPO's clipped policy loss with per-token ratios (arXiv 1707.06347, eq. 7), normalised by global counts.

    r_t = exp(logp_t - old_logp_t)
    L   = - sum_t w_t * c_t * min(r_t * A_t, clip(r_t, 1 - clip_low, 1 + clip_high) * A_t)

w_t makes the aggregation (`token_weights`): because it is divided by counts over the GLOBAL minibatch, the losses of
micro-batches and ranks add up to the loss of the whole. c_t is the truncated importance weight (1 when off).
All tensors are flat over response tokens, [N] float32, sample after sample.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Aggregation = Literal["token-mean", "sequence-mean"]


class PolicyLoss(NamedTuple):
    """This part's share of the loss and of its metrics.

    `loss` and `sums` add up over parts to the values of the global minibatch; `maxima` combine by max.
    """

    loss: Tensor  # scalar, differentiable
    sums: dict[str, Tensor]  # scalars, detached; token averages over the global minibatch
    maxima: dict[str, Tensor]  # scalars, detached


def token_weights(
    sample_weights: Tensor, lengths: Tensor, aggregation: Aggregation, *, num_global_tokens: int, num_global_samples: int
) -> Tensor:
    """Weight of each response token in the loss.

    token-mean: 1 / num_global_tokens. sequence-mean: 1 / (its response's length * num_global_samples).

    Args:
        sample_weights: [B] float, 1 or 0 (filler).
        lengths: [B] int64, response tokens of each sample, >= 1.

    Returns:
        [N] float32, N = lengths.sum().
    """
    if aggregation == "token-mean":
        per_sample = sample_weights / num_global_tokens
    else:
        per_sample = sample_weights / (lengths * num_global_samples)
    return per_sample.repeat_interleave(lengths)


def importance_weights(old_logprobs: Tensor, rollout_logprobs: Tensor, cap: float) -> Tensor:
    """Truncated importance sampling: min(pi_learner / pi_engine, cap) at the weights before the update. [N], no gradient."""
    return (old_logprobs - rollout_logprobs).exp().clamp(max=cap).detach()


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    num_global_tokens: int,
    importance: Tensor | None = None,
    entropies: Tensor | None = None,
) -> PolicyLoss:
    """The clipped loss and what to know about it.

    Args:
        logprobs: [N] of the policy being trained, with gradient.
        old_logprobs: [N] of pi_old.
        advantages: [N], each sample's advantage repeated over its response tokens.
        weights: [N] from `token_weights`; tokens of weight 0 count nowhere.
        num_global_tokens: response tokens of weight > 0 in the global minibatch; the metrics' denominator.
        importance: [N] from `importance_weights`, or None for 1.
        entropies: [N] of the token distributions, only for the metrics.

    Metrics: clip_fraction_low / clip_fraction_high are the tokens whose gradient the clip removed (A < 0 below the
    range, A > 0 above it); approx_kl_k1 = mean(-log r) and approx_kl_k3 = mean(r - 1 - log r) estimate
    KL(pi_old || pi) (joschu.net/blog/kl-approx.html).
    """
    counted = weights > 0
    log_ratio = torch.where(counted, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    if importance is not None:
        objective = objective * importance
    loss = -(torch.where(counted, objective, 0.0) * weights).sum()

    with torch.no_grad():
        per_token = {
            "clip_fraction_low": (advantages < 0) & (ratio < 1.0 - clip_low),
            "clip_fraction_high": (advantages > 0) & (ratio > 1.0 + clip_high),
            "ratio_mean": ratio,
            "approx_kl_k1": -log_ratio,
            "approx_kl_k3": ratio - 1.0 - log_ratio,
        }
        if entropies is not None:
            per_token["entropy"] = entropies
        if importance is not None:
            per_token["importance_mean"] = importance
        sums = {name: _masked_sum(values, counted) / num_global_tokens for name, values in per_token.items()}
        maxima = {"ratio_max": torch.where(counted, ratio, 0.0).max()}
    return PolicyLoss(loss, sums, maxima)


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values.float(), 0.0).sum()
