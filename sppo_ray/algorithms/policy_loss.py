"""PPO's clipped policy loss (arXiv 1707.06347, eq. 7) with KL penalty and entropy bonus.

    L   = - sum_t w_t * c_t * min(r_t * A_t, clip(r_t, 1 - clip_low, 1 + clip_high) * A_t)
          (with dual_clip, r_t in the first term is at most dual_clip)
          + kl.coefficient * sum_t w_t * KL_t
          - entropy_coefficient * sum_t H_t / num_global_tokens

    r_t = exp(logp_t - old_logp_t); for `ratio: sequence` its geometric mean over the response
          (GSPO, arXiv 2507.18071)
    w_t   weight of the token (`token_weights`)
    c_t   truncated or masked importance weight; 1 when off

With `loss` set, the first line is replaced by one of `loss_forms`.

w_t is divided by counts of the global minibatch, so the losses of all micro-batches and ranks add
up to the loss of the global minibatch. Tensors of shape [N] hold one float32 per response token,
sample after sample.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sppo_ray.algorithms.base import AlgorithmSettings, KLSettings
from sppo_ray.algorithms.loss_forms import gradient_weights, weighted_objective
from sppo_ray.algorithms.loss_settings import ImportanceMaskSettings, LossForm
from sppo_ray.algorithms.tensor_ops import TokenBatch

_LARGEST_LOG_RATIO = 20.0  # exp(2 * 20) times any number of tokens is finite in float32
Aggregation = Literal["token-mean", "sequence-mean", "constant"]


class LossScale(NamedTuple):
    """Divisors of the sums over tokens; equal on all ranks and known before the backward pass."""

    num_global_tokens: int  # response tokens of weight 1 in the minibatch, over all ranks
    num_global_samples: int
    max_response_tokens: int  # rollout.max_response_tokens, for aggregation `constant`


class PolicyLoss(NamedTuple):
    """The loss and metrics of a part of the global minibatch.

    The values of the global minibatch are the sums of `loss` and `sums` over all parts, and the
    maxima of `maxima`.
    """

    loss: Tensor  # scalar, differentiable
    sums: dict[str, Tensor]  # scalars, detached; each divided by num_global_tokens
    maxima: dict[str, Tensor]  # scalars, detached


def training_loss(
    logprobs: Tensor, entropies: Tensor, batch: TokenBatch, settings: AlgorithmSettings, scale: LossScale
) -> PolicyLoss:
    """Compute the full loss of the policy on one micro-batch.

    Args:
        logprobs: [N] float32, log-probs of the policy, with gradient.
        entropies: [N] float32, entropies of the policy's token distributions in nats; with gradient
            when `settings.entropy_coefficient` > 0.
        batch: the other inputs. `reference_logprobs` is set when `settings.kl.coefficient` > 0.
        settings: clip range, ratio, aggregation and coefficients.
        scale: counts of the global minibatch.

    Returns:
        The loss, the metrics of `policy_loss`, logprob_difference_mean and _max =
        |learner - engine|, and engine_ratio_mean and engine_ratio_square, the moments of
        pi / pi_engine for `effective_sample_size`. With a KL penalty also kl_reference, the KL
        estimate per token before the coefficient.

    Raises:
        ValueError: a KL penalty without the reference's log-probs.
    """
    weights = token_weights(batch.weights, batch.lengths, settings.loss_aggregation, scale)
    importance = None
    if settings.corrects_engine:
        importance = importance_weights(
            batch.old_logprobs, batch.rollout_logprobs, settings.importance_cap, settings.importance_mask
        )
    common = {
        "num_global_tokens": scale.num_global_tokens, "importance": importance, "entropies": entropies,
    }  # fmt: skip
    if settings.loss is None:
        loss, sums, maxima = policy_loss(
            logprobs,
            batch.old_logprobs,
            batch.advantages,
            weights,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
            lengths=batch.lengths if settings.ratio == "sequence" else None,
            **common,
        )
    else:
        loss, sums, maxima = weighted_loss(settings.loss, logprobs, batch, weights, **common)
    counted = weights > 0
    if settings.entropy_coefficient > 0:
        loss = loss - settings.entropy_coefficient * _masked_sum(entropies, counted) / scale.num_global_tokens
    if settings.kl.coefficient > 0:
        if batch.reference_logprobs is None:
            raise ValueError(
                "algorithm.kl.coefficient > 0 needs the reference's log-probs in the micro-batch"
            )
        kl = kl_estimates(torch.where(counted, logprobs - batch.reference_logprobs, 0.0), settings.kl)
        loss = loss + settings.kl.coefficient * (kl * weights).sum()
        sums["kl_reference"] = kl.detach().sum() / scale.num_global_tokens
    # Compare the engine with the learner's pi_old if it was computed, else with the current policy.
    learner = batch.old_logprobs if settings.old_logprobs == "learner" else logprobs.detach()
    difference = torch.where(counted, (learner - batch.rollout_logprobs).abs(), 0.0)
    sums["logprob_difference_mean"] = difference.sum() / scale.num_global_tokens
    maxima["logprob_difference_max"] = difference.max()
    log_ratio = torch.where(counted, logprobs.detach() - batch.rollout_logprobs, 0.0)
    ratio = log_ratio.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp()
    sums["engine_ratio_mean"] = _masked_sum(ratio, counted) / scale.num_global_tokens
    sums["engine_ratio_square"] = _masked_sum(ratio.square(), counted) / scale.num_global_tokens
    return PolicyLoss(loss, sums, maxima)


def effective_sample_size(ratio_mean: float, ratio_square: float) -> float:
    """Return (sum r)^2 / (n sum r^2), the share of n tokens that their importance ratios
    r = pi / pi_engine are worth (Kish 1965): 1 when all are equal, 1 / n when one outweighs all.

    Arguments: the means of r and r^2 over the tokens of a minibatch.
    """
    return ratio_mean**2 / ratio_square


def token_weights(
    sample_weights: Tensor, lengths: Tensor, aggregation: Aggregation, scale: LossScale
) -> Tensor:
    """Return the weight of each response token in the loss.

        token-mean:     1 / num_global_tokens
        sequence-mean:  1 / (length of the response * num_global_samples)
        constant:       1 / (num_global_samples * max_response_tokens)

    Args:
        sample_weights: [B] float32, 1, or 0 for a filler row.
        lengths: [B] int64, response tokens of each sample, >= 1.

    Returns:
        [N] float32, N = lengths.sum(); 0 for the tokens of filler rows.
    """
    if aggregation == "token-mean":
        per_sample = sample_weights / scale.num_global_tokens
    elif aggregation == "sequence-mean":
        per_sample = sample_weights / (lengths * scale.num_global_samples)
    else:
        per_sample = sample_weights / (scale.num_global_samples * scale.max_response_tokens)
    return per_sample.repeat_interleave(lengths)


def importance_weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    cap: float | None,
    mask: ImportanceMaskSettings | None = None,
) -> Tensor:
    """Return c_t = min(pi_old / pi_rollout, cap), and 0 where pi_old / pi_rollout is outside the
    bounds of `mask`, [N] float32, without gradient.

    Args:
        old_logprobs: [N] float32, from the learner before the update.
        rollout_logprobs: [N] float32, from the engine.
        cap: >= 1; None = no cap.
        mask: None = no mask.
    """
    ratio = (old_logprobs - rollout_logprobs).exp()
    weights = ratio if cap is None else ratio.clamp(max=cap)
    if mask is not None:
        weights = torch.where((ratio >= mask.low) & (ratio <= mask.high), weights, 0.0)
    return weights.detach()


def kl_estimates(difference: Tensor, kl: KLSettings) -> Tensor:
    """Estimate KL(pi || pi_ref) at each sampled token (joschu.net/blog/kl-approx.html).

        k1 = d,   k2 = d^2 / 2,   k3 = exp(-d) - 1 + d

    Args:
        difference: [N] float32, d = log pi - log pi_ref of the sampled tokens.
        kl: chooses the estimator.

    Returns:
        [N] float32, differentiable in `difference`.
    """
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
    dual_clip: float | None = None,
    lengths: Tensor | None = None,
    importance: Tensor | None = None,
    entropies: Tensor | None = None,
) -> PolicyLoss:
    """Compute the clipped loss of one micro-batch, without KL penalty and entropy bonus.

    Args:
        logprobs: [N] float32, log-probs of the policy, with gradient.
        old_logprobs: [N] float32, log-probs of pi_old.
        advantages: [N] float32.
        weights: [N] float32, from `token_weights`. Tokens of weight 0 do not count in loss and
            metrics.
        clip_low: ratios below 1 - clip_low are clipped.
        clip_high: ratios above 1 + clip_high are clipped.
        num_global_tokens: tokens of weight > 0 in the global minibatch; divisor of the metrics.
        dual_clip: where A < 0, ratios above it are clipped as well. None = they are not.
        lengths: [B] int64, response tokens of each sample: clip the geometric mean of each
            response's ratios. None = clip each token's ratio.
        importance: [N] float32, from `importance_weights`; None = 1.
        entropies: [N] float32, used only for the metric entropy.

    Returns:
        The loss and the metrics:
        clip_fraction_low, clip_fraction_high: share of tokens whose gradient is 0 because of the
            clip (A < 0 below the range, A > 0 above it);
        ratio_mean, ratio_max: of the ratios that are clipped;
        approx_kl_k1 = mean(-log r), approx_kl_k3 = mean(r - 1 - log r): estimates of
            KL(pi_old || pi) from the token ratios (joschu.net/blog/kl-approx.html);
        masked_fraction: share of tokens without a gradient, by the clip, by dual_clip or by
            importance 0;
        entropy, importance_mean: means of the arguments, if given.
    """
    counted = weights > 0
    log_ratio = torch.where(counted, logprobs - old_logprobs, 0.0)
    ratio = (log_ratio if lengths is None else _response_means(log_ratio, lengths)).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    bounded = ratio if dual_clip is None else ratio.clamp(max=dual_clip)
    objective = torch.minimum(bounded * advantages, clipped * advantages)
    if importance is not None:
        objective = objective * importance
    loss = -(torch.where(counted, objective, 0.0) * weights).sum()
    low, high = (advantages < 0) & (ratio < 1.0 - clip_low), (advantages > 0) & (ratio > 1.0 + clip_high)
    masked = low | high | ((advantages < 0) & (ratio > (dual_clip or math.inf)))
    metrics = _Metrics(counted, num_global_tokens, importance, entropies)
    found = metrics.of(ratio=ratio, log_ratio=log_ratio, low=low, high=high, masked=masked)
    return PolicyLoss(loss, *found)


def weighted_loss(
    form: LossForm,
    logprobs: Tensor,
    batch: TokenBatch,
    weights: Tensor,
    *,
    num_global_tokens: int,
    importance: Tensor | None = None,
    entropies: Tensor | None = None,
) -> PolicyLoss:
    """Compute the loss of one of `loss_forms` on one micro-batch.

    Arguments and metrics as in `policy_loss`. clip_fraction_low and clip_fraction_high are the
    shares of tokens that the lower and the upper bound changed: masked (dis, dppo) or clipped
    (cispo). The ratios are those of the form, and so are the estimates of the KL divergence.
    """
    counted = weights > 0
    with torch.no_grad():
        old, rollout = batch.old_logprobs, batch.rollout_logprobs
        known = torch.where(counted, logprobs, 0.0)
        form_weights, log_ratio, low, high = gradient_weights(form, known, old, rollout, batch.advantages)
    objective = weighted_objective(form_weights, batch.advantages, logprobs)
    if importance is not None:
        objective = objective * importance
    loss = -(torch.where(counted, objective, 0.0) * weights).sum()
    log_ratio = torch.where(counted, log_ratio, 0.0)
    metrics = _Metrics(counted, num_global_tokens, importance, entropies)
    found = metrics.of(
        ratio=log_ratio.exp(), log_ratio=log_ratio, low=low, high=high, masked=form_weights == 0
    )
    return PolicyLoss(loss, *found)


class _Metrics(NamedTuple):
    """The metrics of a micro-batch; arguments as in `policy_loss`."""

    counted: Tensor
    num_global_tokens: int
    importance: Tensor | None
    entropies: Tensor | None

    @torch.no_grad()
    def of(
        self, *, ratio: Tensor, log_ratio: Tensor, low: Tensor, high: Tensor, masked: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self.importance is not None:
            masked = masked | (self.importance == 0)
        per_token = {
            "clip_fraction_low": low,
            "clip_fraction_high": high,
            "masked_fraction": masked,
            "ratio_mean": ratio,
            "approx_kl_k1": -log_ratio,
            "approx_kl_k3": log_ratio.exp() - 1.0 - log_ratio,
        }
        if self.entropies is not None:
            per_token["entropy"] = self.entropies
        if self.importance is not None:
            per_token["importance_mean"] = self.importance
        sums = {
            name: _masked_sum(values, self.counted) / self.num_global_tokens
            for name, values in per_token.items()
        }
        return sums, {"ratio_max": torch.where(self.counted, ratio, 0.0).max()}


def _response_means(values: Tensor, lengths: Tensor) -> Tensor:
    """Replace each token's value by the mean over its response, [N], differentiable."""
    rows = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths)
    means = values.new_zeros(len(lengths)).index_add(0, rows, values) / lengths
    return means[rows]


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values.float(), 0.0).sum()
