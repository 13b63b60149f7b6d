"""PPO's clipped policy loss (arXiv 1707.06347, eq. 7) and what may be added to it, normalised by global counts.

    r_t = exp(logp_t - old_logp_t),   or for all tokens of a response their geometric mean (GSPO, arXiv 2507.18071)
    L   = - sum_t w_t * c_t * min(r_t * A_t, clip(r_t, 1 - clip_low, 1 + clip_high) * A_t)
          + kl.coefficient * sum_t w_t * KL_t  -  entropy_coefficient * sum_t H_t / num_global_tokens

w_t makes the aggregation (`token_weights`): because it is divided by counts over the GLOBAL minibatch, the losses of
micro-batches and ranks add up to the loss of the whole. c_t is the truncated importance weight (1 when off).
All tensors without another shape are flat over response tokens, [N] float32, sample after sample.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sppo_ray.algorithms.base import AlgorithmSettings, KLSettings
from sppo_ray.algorithms.tensor_ops import TokenBatch

Aggregation = Literal["token-mean", "sequence-mean", "constant"]


class LossScale(NamedTuple):
    """What sums over tokens are divided by; the same on every rank, known before the backward pass."""

    num_global_tokens: int  # response tokens of weight 1 in the minibatch, over all ranks
    num_global_samples: int
    max_response_tokens: int  # rollout.max_response_tokens; only aggregation `constant` reads it


class PolicyLoss(NamedTuple):
    """This part's share of the loss and of its metrics.

    `loss` and `sums` add up over parts to the values of the global minibatch; `maxima` combine by max.
    """

    loss: Tensor  # scalar, differentiable
    sums: dict[str, Tensor]  # scalars, detached; token averages over the global minibatch
    maxima: dict[str, Tensor]  # scalars, detached


def training_loss(
    logprobs: Tensor, entropies: Tensor, batch: TokenBatch, settings: AlgorithmSettings, scale: LossScale
) -> PolicyLoss:
    """Everything that the policy is trained by, on one micro-batch, as `settings` say.

    Args:
        logprobs: [N] of the policy being trained, with gradient.
        entropies: [N] of its token distributions, nats; with gradient where `settings.entropy_coefficient` > 0.
        batch: pi_old, the engine's log-probs, advantages and, where `settings.kl.coefficient` > 0, the reference's log-probs.

    Metrics beside those of `policy_loss`: logprob_difference_mean / _max = |learner - engine|, and with a KL penalty
    kl_reference, its estimate (per token, before the coefficient).

    Raises:
        ValueError: a KL penalty without the reference's log-probs.
    """
    weights = token_weights(batch.weights, batch.lengths, settings.loss_aggregation, scale)
    cap = settings.importance_cap
    loss, sums, maxima = policy_loss(
        logprobs,
        batch.old_logprobs,
        batch.advantages,
        weights,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        num_global_tokens=scale.num_global_tokens,
        lengths=batch.lengths if settings.ratio == "sequence" else None,
        importance=None if cap is None else importance_weights(batch.old_logprobs, batch.rollout_logprobs, cap),
        entropies=entropies,
    )
    counted = weights > 0
    if settings.entropy_coefficient > 0:
        loss = loss - settings.entropy_coefficient * _masked_sum(entropies, counted) / scale.num_global_tokens
    if settings.kl.coefficient > 0:
        if batch.reference_logprobs is None:
            raise ValueError("algorithm.kl.coefficient > 0 needs the reference's log-probs in the micro-batch")
        kl = kl_estimates(torch.where(counted, logprobs - batch.reference_logprobs, 0.0), settings.kl)
        loss = loss + settings.kl.coefficient * (kl * weights).sum()
        sums["kl_reference"] = kl.detach().sum() / scale.num_global_tokens
    # The learner's side of the comparison is pi_old where it was recomputed, else the weights of this update.
    learner = batch.old_logprobs if settings.old_logprobs == "learner" else logprobs.detach()
    difference = torch.where(counted, (learner - batch.rollout_logprobs).abs(), 0.0)
    sums["logprob_difference_mean"] = difference.sum() / scale.num_global_tokens
    maxima["logprob_difference_max"] = difference.max()
    return PolicyLoss(loss, sums, maxima)


def token_weights(sample_weights: Tensor, lengths: Tensor, aggregation: Aggregation, scale: LossScale) -> Tensor:
    """Weight of each response token in the loss.

    token-mean: 1 / num_global_tokens. sequence-mean: 1 / (its response's length * num_global_samples).
    constant: 1 / (num_global_samples * max_response_tokens).

    Args:
        sample_weights: [B] float, 1 or 0 (filler).
        lengths: [B] int64, response tokens of each sample, >= 1.

    Returns:
        [N] float32, N = lengths.sum().
    """
    if aggregation == "token-mean":
        per_sample = sample_weights / scale.num_global_tokens
    elif aggregation == "sequence-mean":
        per_sample = sample_weights / (lengths * scale.num_global_samples)
    else:
        per_sample = sample_weights / (scale.num_global_samples * scale.max_response_tokens)
    return per_sample.repeat_interleave(lengths)


def importance_weights(old_logprobs: Tensor, rollout_logprobs: Tensor, cap: float) -> Tensor:
    """Truncated importance sampling: min(pi_learner / pi_engine, cap) at the weights before the update. [N], no gradient."""
    return (old_logprobs - rollout_logprobs).exp().clamp(max=cap).detach()


def kl_estimates(difference: Tensor, kl: KLSettings) -> Tensor:
    """Estimates of KL(pi || pi_ref) from [N] d = log pi - log pi_ref of the sampled tokens: k1 = d, k2 = d^2 / 2,
    k3 = exp(-d) - 1 + d (joschu.net/blog/kl-approx.html). [N], with the gradient of `difference`."""
    if kl.estimator == "k1":
        return difference
    if kl.estimator == "k2":
        return difference.square() / 2
    return (-difference).exp() - 1.0 + difference


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    num_global_tokens: int,
    lengths: Tensor | None = None,
    importance: Tensor | None = None,
    entropies: Tensor | None = None,
) -> PolicyLoss:
    """The clipped loss and what to know about it.

    Args:
        logprobs: [N] of the policy being trained, with gradient.
        old_logprobs: [N] of pi_old.
        advantages: [N].
        weights: [N] from `token_weights`; tokens of weight 0 count nowhere.
        num_global_tokens: response tokens of weight > 0 in the global minibatch; the metrics' denominator.
        lengths: [B] int64: clip the geometric mean of each response's ratios. None = clip each token's ratio.
        importance: [N] from `importance_weights`, or None for 1.
        entropies: [N] of the token distributions, only for the metrics.

    Metrics: clip_fraction_low / clip_fraction_high are the tokens whose gradient the clip removed (A < 0 below the
    range, A > 0 above it); ratio_mean and ratio_max are of what was clipped; approx_kl_k1 = mean(-log r) and
    approx_kl_k3 = mean(r - 1 - log r) estimate KL(pi_old || pi) from the tokens' ratios (joschu.net/blog/kl-approx.html).
    """
    counted = weights > 0
    log_ratio = torch.where(counted, logprobs - old_logprobs, 0.0)
    ratio = (log_ratio if lengths is None else _response_means(log_ratio, lengths)).exp()
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
            "approx_kl_k3": log_ratio.exp() - 1.0 - log_ratio,
        }
        if entropies is not None:
            per_token["entropy"] = entropies
        if importance is not None:
            per_token["importance_mean"] = importance
        sums = {name: _masked_sum(values, counted) / num_global_tokens for name, values in per_token.items()}
        maxima = {"ratio_max": torch.where(counted, ratio, 0.0).max()}
    return PolicyLoss(loss, sums, maxima)


def _response_means(values: Tensor, lengths: Tensor) -> Tensor:
    """[N]: each response's mean, on each of its tokens. The gradient reaches every token of the response."""
    rows = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths)
    means = values.new_zeros(len(lengths)).index_add(0, rows, values) / lengths
    return means[rows]


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values.float(), 0.0).sum()
