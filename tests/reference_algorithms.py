"""Naive implementations of the algorithms from their definitions, as reference for the parity
tests.

They share no code with `sppo_ray.algorithms` and use other forms: sums instead of recursions,
padded rows and Python loops instead of flat tensors.

Suffixes of tensor names: B samples, T tokens (padded).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def gae(reward: float, values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """arXiv 1506.02438, eq. 16: A_t is the sum of the discounted temporal differences from t on; V
    is 0 after the last token.
    """
    rewards = [0.0] * (len(values) - 1) + [reward]
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - before for r, after, before in zip(rewards, following, values, strict=True)]
    return [
        sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(values)))  #
        for t in range(len(values))
    ]


def whiten(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Mean 0 and sample standard deviation 1 over everything."""
    flat = torch.tensor([value for row in rows for value in row], dtype=torch.float64)
    mean, deviation = flat.mean().item(), (flat.std().item() if len(flat) > 1 else 0.0)
    return [[(value - mean) / (deviation + 1e-8) for value in row] for row in rows]


def leave_one_out(groups: Sequence[str], rewards: Sequence[float]) -> list[float]:
    """arXiv 2402.14740."""
    result = []
    for i, reward in enumerate(rewards):
        others = [rewards[j] for j in range(len(rewards)) if j != i and groups[j] == groups[i]]
        result.append(reward - sum(others) / len(others) if others else 0.0)
    return result


def group_relative(groups: Sequence[str], rewards: Sequence[float], normalize: bool) -> list[float]:
    """arXiv 2402.03300, section 4.1.2."""
    result = []
    for group, reward in zip(groups, rewards, strict=True):
        same = torch.tensor(
            [r for g, r in zip(groups, rewards, strict=True) if g == group], dtype=torch.float64
        )
        deviation = same.std().item() if len(same) > 1 else 0.0
        result.append((reward - same.mean().item()) / (deviation + 1e-4 if normalize else 1.0))
    return result


@dataclass(frozen=True)
class Options:
    """As the settings of the same names."""

    ratio: str = "token"
    loss_aggregation: str = "token-mean"
    clip_low: float = 0.2
    clip_high: float = 0.2
    importance_cap: float | None = None
    importance_mask: tuple[float, float] | None = None
    loss: tuple[str, float, float] | None = None  # form with its two numbers
    kl_coefficient: float = 0.0
    kl_estimator: str = "k3"
    entropy_coefficient: float = 0.0
    max_response_tokens: int = 10


@dataclass(frozen=True)
class Rows:
    """Padded rows; what stands in the padding must not matter."""

    logprobs_BT: Tensor
    old_BT: Tensor
    rollout_BT: Tensor
    reference_BT: Tensor
    entropies_BT: Tensor
    advantages_BT: Tensor
    lengths_B: list[int]


def loss(rows: Rows, options: Options) -> Tensor:
    """The whole training loss, one token at a time."""
    total = torch.zeros(())
    samples, tokens = len(rows.lengths_B), sum(rows.lengths_B)
    for i, length in enumerate(rows.lengths_B):
        for t in range(length):
            gain = (_clipped_gain if options.loss is None else _weighted_gain)(rows, options, i, t)
            correction = math.exp(rows.old_BT[i, t] - rows.rollout_BT[i, t])
            if options.importance_mask is not None:
                low, high = options.importance_mask
                gain = gain * (correction if low <= correction <= high else 0.0)
            elif options.importance_cap is not None:
                gain = gain * min(correction, options.importance_cap)
            penalty = options.kl_coefficient * _kl(rows, options, i, t)
            divisor = {
                "token-mean": tokens,
                "sequence-mean": samples * length,
                "constant": samples * options.max_response_tokens,
            }[options.loss_aggregation]
            total = (
                total
                + (penalty - gain) / divisor
                - options.entropy_coefficient * rows.entropies_BT[i, t] / tokens
            )
    return total


def _clipped_gain(rows: Rows, options: Options, i: int, t: int) -> Tensor:
    difference = rows.logprobs_BT[i] - rows.old_BT[i]
    if options.ratio == "sequence":
        # The L-th root of the likelihood ratio of the whole response (arXiv 2507.18071).
        ratio = torch.stack([difference[s].exp() for s in range(rows.lengths_B[i])]).prod() ** (
            1 / rows.lengths_B[i]
        )
    else:
        ratio = difference[t].exp()
    advantage = rows.advantages_BT[i, t]
    bounded = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    return ratio * advantage if ratio * advantage < bounded * advantage else bounded * advantage


def _weighted_gain(rows: Rows, options: Options, i: int, t: int) -> Tensor:
    """sg(g) A log pi, by the definitions of arXiv 2607.07508, 2602.04879 and 2506.13585."""
    form, first, second = options.loss or ("", 0.0, 0.0)
    advantage, new = rows.advantages_BT[i, t], rows.logprobs_BT[i, t]
    pi, mu, old = (math.exp(p[i, t]) for p in (rows.logprobs_BT, rows.rollout_BT, rows.old_BT))
    if form == "dis":
        weight = pi / mu if first < pi / mu < second else 0.0
    elif form == "dppo":
        towards = pi - mu if advantage > 0 else mu - pi
        weight = min(pi / mu, second) if towards <= first else 0.0
    else:
        weight = min(max(pi / old, first), second)
    return weight * advantage * new


def _kl(rows: Rows, options: Options, i: int, t: int) -> Tensor:
    """joschu.net/blog/kl-approx.html, with r = pi_ref / pi."""
    r = (rows.reference_BT[i, t] - rows.logprobs_BT[i, t]).exp()
    return {"k1": -r.log(), "k2": r.log() ** 2 / 2, "k3": (r - 1) - r.log()}[options.kl_estimator]
