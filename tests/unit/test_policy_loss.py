from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.algorithms.policy_loss import PolicyLoss, importance_weights, policy_loss, token_weights
from tests.reference_sppo import policy_loss as reference_loss

CLIP = {"clip_low": 0.2, "clip_high": 0.2}


def weights_of(lengths: list[int], aggregation: str = "token-mean", sample_weights: list[float] | None = None) -> torch.Tensor:
    return token_weights(
        torch.tensor(sample_weights or [1.0] * len(lengths)),
        torch.tensor(lengths),
        aggregation,
        num_global_tokens=sum(lengths),
        num_global_samples=len(lengths),
    )


def loss_of_ratios(ratios: list[float], advantages: list[float], **options: float) -> PolicyLoss:
    logprobs = torch.tensor(ratios).log().requires_grad_()
    count = len(ratios)
    clip = CLIP | options
    return policy_loss(
        logprobs, torch.zeros(count), torch.tensor(advantages), weights_of([count]), num_global_tokens=count, **clip
    )


def test_worked_example() -> None:
    # ratio, advantage -> min(r A, clip(r, 0.8, 1.2) A):
    # 1.5, +1 -> min(1.5, 1.2) = 1.2 (clipped high)      0.5, +1 -> min(0.5, 0.8) = 0.5
    # 1.5, -1 -> min(-1.5, -1.2) = -1.5                  0.5, -1 -> min(-0.5, -0.8) = -0.8 (clipped low)
    # loss = -(1.2 + 0.5 - 1.5 - 0.8) / 4 = 0.15
    result = loss_of_ratios([1.5, 0.5, 1.5, 0.5], [1.0, 1.0, -1.0, -1.0])
    assert result.loss.item() == pytest.approx(0.15, abs=1e-6)
    assert result.sums["clip_fraction_low"].item() == 0.25
    assert result.sums["clip_fraction_high"].item() == 0.25
    assert result.sums["ratio_mean"].item() == pytest.approx(1.0)
    assert result.maxima["ratio_max"].item() == pytest.approx(1.5)


def test_kl_estimates() -> None:
    # r = 2 and 1/2: k1 = (-log 2 + log 2) / 2 = 0;  k3 = ((2 - 1 - log 2) + (0.5 - 1 + log 2)) / 2 = 0.25
    result = loss_of_ratios([2.0, 0.5], [1.0, 1.0])
    assert result.sums["approx_kl_k1"].item() == pytest.approx(0.0, abs=1e-7)
    assert result.sums["approx_kl_k3"].item() == pytest.approx(0.25, abs=1e-6)


def test_a_clipped_token_has_no_gradient_and_others_have_minus_ratio_times_advantage() -> None:
    ratios, advantages = [1.5, 0.5, 1.1], [1.0, -1.0, 2.0]
    logprobs = torch.tensor(ratios).log().requires_grad_()
    result = policy_loss(logprobs, torch.zeros(3), torch.tensor(advantages), torch.ones(3), num_global_tokens=3, **CLIP)
    result.loss.backward()
    # d/dlogp of -r A is -r A: 0 (clipped high), 0 (clipped low), -1.1 * 2
    assert logprobs.grad.tolist() == pytest.approx([0.0, 0.0, -2.2])


def test_clip_range_may_be_asymmetric() -> None:
    # A = 1 and r = 1.3: clip_high 0.28 keeps 1.28, clip_high 0.4 keeps 1.3
    assert loss_of_ratios([1.3], [1.0], clip_high=0.28).loss.item() == pytest.approx(-1.28)
    assert loss_of_ratios([1.3], [1.0], clip_high=0.4).loss.item() == pytest.approx(-1.3)


def test_aggregations() -> None:
    # lengths 1 and 3: token-mean weighs each token 1/4; sequence-mean 1/(1*2) and 1/(3*2)
    assert weights_of([1, 3]).tolist() == pytest.approx([0.25] * 4)
    assert weights_of([1, 3], "sequence-mean").tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])


def test_importance_weights_are_truncated() -> None:
    # pi_learner / pi_engine = 0.5, 1, 3 -> capped at 2
    weights = importance_weights(torch.tensor([0.5, 1.0, 3.0]).log(), torch.zeros(3), cap=2.0)
    assert weights.tolist() == pytest.approx([0.5, 1.0, 2.0])
    plain = torch.zeros(3, requires_grad=True)
    ones = torch.ones(3)
    result = policy_loss(plain, torch.zeros(3), ones, weights_of([3]), num_global_tokens=3, importance=weights, **CLIP)
    assert result.loss.item() == pytest.approx(-(0.5 + 1.0 + 2.0) / 3)
    assert result.sums["importance_mean"].item() == pytest.approx(3.5 / 3)


def test_a_filler_counts_nowhere_even_when_it_is_not_a_number() -> None:
    logprobs = torch.tensor([0.0, math.nan], requires_grad=True)
    weights = token_weights(
        torch.tensor([1.0, 0.0]), torch.tensor([1, 1]), "token-mean", num_global_tokens=1, num_global_samples=1
    )
    advantages, entropies = torch.tensor([0.5, 9.0]), torch.tensor([2.0, math.nan])
    result = policy_loss(logprobs, torch.zeros(2), advantages, weights, num_global_tokens=1, entropies=entropies, **CLIP)
    result.loss.backward()
    assert result.loss.item() == -0.5
    assert result.sums["entropy"].item() == 2.0
    assert logprobs.grad.tolist() == [-0.5, 0.0]


rows = st.lists(st.tuples(st.integers(1, 6), st.floats(-1.0, 1.0, width=32), st.integers(0, 10**6)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from(["token-mean", "sequence-mean"]), st.integers(1, 4))
def test_any_split_adds_up_to_the_whole(samples: list[tuple[int, float, int]], aggregation: str, parts: int) -> None:
    total_tokens = sum(length for length, _, _ in samples)

    def evaluate(chosen: list[tuple[int, float, int]]) -> tuple[float, dict[str, float]]:
        lengths = torch.tensor([length for length, _, _ in chosen])
        noise = torch.cat([torch.randn(length, generator=torch.Generator().manual_seed(seed)) for length, _, seed in chosen])
        weights = token_weights(
            torch.ones(len(chosen)), lengths, aggregation, num_global_tokens=total_tokens, num_global_samples=len(samples)
        )
        advantages = torch.tensor([a for _, a, _ in chosen]).repeat_interleave(lengths)
        result = policy_loss(noise * 0.5, torch.zeros_like(noise), advantages, weights, num_global_tokens=total_tokens, **CLIP)
        return result.loss.item(), {name: value.item() for name, value in result.sums.items()}

    loss, sums = evaluate(samples)
    split = [evaluate(part) for start in range(parts) if (part := samples[start::parts])]
    assert sum(part_loss for part_loss, _ in split) == pytest.approx(loss, abs=1e-6)
    for name, value in sums.items():
        assert sum(part_sums[name] for _, part_sums in split) == pytest.approx(value, abs=1e-5)


def test_agrees_with_the_reference() -> None:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([4, 1, 7, 3])
    mask = torch.arange(7) < lengths[:, None]
    new, old = (torch.randn(4, 7, generator=generator) * 0.4 for _ in range(2))
    advantages = torch.randn(4, generator=generator)
    expected = reference_loss(new, old, advantages, mask, 0.2, 0.28)
    result = policy_loss(
        new[mask],
        old[mask],
        advantages.repeat_interleave(lengths),
        weights_of(lengths.tolist()),
        clip_low=0.2,
        clip_high=0.28,
        num_global_tokens=15,
    )
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-6)
