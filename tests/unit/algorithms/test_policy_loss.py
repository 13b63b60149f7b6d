from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.algorithms.base import AlgorithmSettings, KLSettings
from sppo_ray.algorithms.loss_settings import CISPOLoss, DISLoss, DPPOLoss, ImportanceMaskSettings, LossForm
from sppo_ray.algorithms.policy_loss import (
    LossScale,
    PolicyLoss,
    importance_weights,
    kl_estimates,
    policy_loss,
    token_weights,
    training_loss,
)
from sppo_ray.algorithms.tensor_ops import to_tensors
from sppo_ray.data.packing import pack
from sppo_ray.types import MicroBatch
from tests import reference_algorithms as reference
from tests.reference_sppo import policy_loss as reference_loss
from tests.training_data import micro_batch, random_samples

CLIP = {"clip_low": 0.2, "clip_high": 0.2}


def weights_of(
    lengths: list[int], aggregation: str = "token-mean", sample_weights: list[float] | None = None
) -> torch.Tensor:
    return token_weights(
        torch.tensor(sample_weights or [1.0] * len(lengths)),
        torch.tensor(lengths),
        aggregation,
        LossScale(sum(lengths), len(lengths), max_response_tokens=10),
    )


def loss_of_ratios(ratios: list[float], advantages: list[float], **options: float) -> PolicyLoss:
    logprobs = torch.tensor(ratios).log().requires_grad_()
    count = len(ratios)
    clip = CLIP | options
    return policy_loss(
        logprobs,
        torch.zeros(count),
        torch.tensor(advantages),
        weights_of([count]),
        num_global_tokens=count,
        **clip,
    )


def test_worked_example() -> None:
    # ratio, advantage -> min(r A, clip(r, 0.8, 1.2) A):
    # 1.5, +1 -> min(1.5, 1.2) = 1.2 (clipped high)      0.5, +1 -> min(0.5, 0.8) = 0.5
    # 1.5, -1 -> min(-1.5, -1.2) = -1.5                  0.5, -1 -> min(-0.5, -0.8) = -0.8 (clipped
    # low) loss = -(1.2 + 0.5 - 1.5 - 0.8) / 4 = 0.15
    result = loss_of_ratios([1.5, 0.5, 1.5, 0.5], [1.0, 1.0, -1.0, -1.0])
    assert result.loss.item() == pytest.approx(0.15, abs=1e-6)
    assert result.sums["clip_fraction_low"].item() == 0.25
    assert result.sums["clip_fraction_high"].item() == 0.25
    assert result.sums["ratio_mean"].item() == pytest.approx(1.0)
    assert result.maxima["ratio_max"].item() == pytest.approx(1.5)


def test_kl_estimates() -> None:
    # r = 2 and 1/2: k1 = (-log 2 + log 2) / 2 = 0;  k3 = ((2 - 1 - log 2) + (0.5 - 1 + log 2)) / 2
    # = 0.25
    result = loss_of_ratios([2.0, 0.5], [1.0, 1.0])
    assert result.sums["approx_kl_k1"].item() == pytest.approx(0.0, abs=1e-7)
    assert result.sums["approx_kl_k3"].item() == pytest.approx(0.25, abs=1e-6)


def test_a_clipped_token_has_no_gradient_and_others_have_minus_ratio_times_advantage() -> None:
    ratios, advantages = [1.5, 0.5, 1.1], [1.0, -1.0, 2.0]
    logprobs = torch.tensor(ratios).log().requires_grad_()
    result = policy_loss(
        logprobs, torch.zeros(3), torch.tensor(advantages), torch.ones(3), num_global_tokens=3, **CLIP
    )
    result.loss.backward()
    # d/dlogp of -r A is -r A: 0 (clipped high), 0 (clipped low), -1.1 * 2
    assert logprobs.grad.tolist() == pytest.approx([0.0, 0.0, -2.2])


def test_clip_range_may_be_asymmetric() -> None:
    # A = 1 and r = 1.3: clip_high 0.28 keeps 1.28, clip_high 0.4 keeps 1.3
    assert loss_of_ratios([1.3], [1.0], clip_high=0.28).loss.item() == pytest.approx(-1.28)
    assert loss_of_ratios([1.3], [1.0], clip_high=0.4).loss.item() == pytest.approx(-1.3)


def test_a_dual_clip_bounds_the_loss_of_a_negative_advantage() -> None:
    # A = -1: r = 4 counts as 3, r = 2 as it is; A = 1 and r = 4 is clipped at 1.2 in any case
    # loss = (3 + 2 - 1.2) / 3
    result = loss_of_ratios([4.0, 2.0, 4.0], [-1.0, -1.0, 1.0], dual_clip=3.0)
    assert result.loss.item() == pytest.approx(3.8 / 3)
    assert result.sums["clip_fraction_high"].item() == pytest.approx(1 / 3)
    assert result.sums["masked_fraction"].item() == pytest.approx(2 / 3)
    assert loss_of_ratios([4.0, 2.0, 4.0], [-1.0, -1.0, 1.0]).loss.item() == pytest.approx(4.8 / 3)
    logprobs = torch.tensor([4.0, 2.0]).log().requires_grad_()
    policy_loss(
        logprobs, torch.zeros(2), -torch.ones(2), torch.ones(2), num_global_tokens=2, dual_clip=3.0, **CLIP
    ).loss.backward()
    assert logprobs.grad.tolist() == pytest.approx([0.0, 2.0])


def test_aggregations() -> None:
    # lengths 1 and 3: token-mean weighs each token 1/4; sequence-mean 1/(1*2) and 1/(3*2)
    assert weights_of([1, 3]).tolist() == pytest.approx([0.25] * 4)
    assert weights_of([1, 3], "sequence-mean").tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    # constant: 2 samples of at most 10 tokens, whatever they hold
    assert weights_of([1, 3], "constant").tolist() == pytest.approx([1 / 20] * 4)


def test_importance_weights_are_truncated() -> None:
    # pi_learner / pi_engine = 0.5, 1, 3 -> capped at 2
    weights = importance_weights(torch.tensor([0.5, 1.0, 3.0]).log(), torch.zeros(3), cap=2.0)
    assert weights.tolist() == pytest.approx([0.5, 1.0, 2.0])
    plain = torch.zeros(3, requires_grad=True)
    ones = torch.ones(3)
    result = policy_loss(
        plain, torch.zeros(3), ones, weights_of([3]), num_global_tokens=3, importance=weights, **CLIP
    )
    assert result.loss.item() == pytest.approx(-(0.5 + 1.0 + 2.0) / 3)
    assert result.sums["importance_mean"].item() == pytest.approx(3.5 / 3)


def test_a_filler_counts_nowhere_even_when_it_is_not_a_number() -> None:
    logprobs = torch.tensor([0.0, math.nan], requires_grad=True)
    weights = token_weights(torch.tensor([1.0, 0.0]), torch.tensor([1, 1]), "token-mean", LossScale(1, 1, 1))
    advantages, entropies = torch.tensor([0.5, 9.0]), torch.tensor([2.0, math.nan])
    result = policy_loss(
        logprobs, torch.zeros(2), advantages, weights, num_global_tokens=1, entropies=entropies, **CLIP
    )
    result.loss.backward()
    assert result.loss.item() == -0.5
    assert result.sums["entropy"].item() == 2.0
    assert logprobs.grad.tolist() == [-0.5, 0.0]


def test_agrees_with_the_single_file_reference() -> None:
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


# ---------------------------------------------------------------------- sequence ratio, KL, entropy


def test_the_sequence_ratio_is_the_geometric_mean_and_is_clipped_as_a_whole() -> None:
    # response 1: ratios 1.2, 0.3 -> sqrt(0.36) = 0.6, A = 1 -> min(0.6, 0.8) = 0.6 on both tokens
    # response 2: ratio 1.5, A = 1 -> min(1.5, 1.2) = 1.2, clipped.       loss = -(0.6 + 0.6 + 1.2)
    # / 3 = -0.8
    logprobs = torch.tensor([1.2, 0.3, 1.5]).log().requires_grad_()
    result = policy_loss(
        logprobs,
        torch.zeros(3),
        torch.ones(3),
        weights_of([2, 1]),
        num_global_tokens=3,
        lengths=torch.tensor([2, 1]),
        **CLIP,
    )
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-0.8, abs=1e-6)
    # d(0.6)/dlogp = 0.6 / 2 for each token, and it is summed over both tokens and divided by 3:
    # -0.6 / 3 each; clipped: 0
    assert logprobs.grad.tolist() == pytest.approx([-0.2, -0.2, 0.0])
    assert result.sums["clip_fraction_high"].item() == pytest.approx(1 / 3)
    assert result.sums["ratio_mean"].item() == pytest.approx((0.6 + 0.6 + 1.5) / 3)
    # KL estimates stay those of the tokens: k1 = -(log 1.2 + log 0.3 + log 1.5) / 3
    assert result.sums["approx_kl_k1"].item() == pytest.approx(-math.log(1.2 * 0.3 * 1.5) / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("estimator", "expected", "slope"),
    # d = log 2 -> k1 = log 2, k2 = (log 2)^2 / 2, k3 = 1/2 - 1 + log 2; slopes 1, d, 1 - exp(-d) =
    # 1/2
    [("k1", math.log(2), 1.0), ("k2", math.log(2) ** 2 / 2, math.log(2)), ("k3", math.log(2) - 0.5, 0.5)],
)
def test_kl_estimators(estimator: str, expected: float, slope: float) -> None:
    difference = torch.tensor([2.0]).log().requires_grad_()
    estimate = kl_estimates(difference, KLSettings(coefficient=1.0, estimator=estimator))
    estimate.backward()
    assert estimate.item() == pytest.approx(expected, abs=1e-6)
    assert difference.grad.item() == pytest.approx(slope, abs=1e-6)
    assert kl_estimates(torch.zeros(1), KLSettings(estimator=estimator)).item() == 0.0


def two_samples(reference_logprobs: tuple[tuple[float, ...], ...] = ()) -> MicroBatch:
    """Responses of 2 and 1 tokens, advantages 0; the second is a filler."""
    old = ((0.0, 0.0), (0.0,))
    return micro_batch(
        ((4,), (4,)), ((5, 6), (7,)), old, ((0.5, -0.25), (9.0,)), old, (1.0, 0.0), reference_logprobs
    )


def test_penalty_bonus_and_difference_on_paper() -> None:
    # both ratios are 1 and A = 0: no clipped term. d = 0 - (-1) = 1 and 0 - 0 = 0, k2 = 1/2 and 0,
    # weights 1/2: penalty 0.1 * 1/2 * 1/2 = 0.025. Entropies 1 and 3: bonus 0.01 * (1 + 3) / 2 =
    # 0.02.   loss = 0.025 - 0.02
    settings = AlgorithmSettings(kl=KLSettings(coefficient=0.1, estimator="k2"), entropy_coefficient=0.01)
    logprobs, entropies = (
        torch.zeros(3, requires_grad=True),
        torch.tensor([1.0, 3.0, math.nan], requires_grad=True),
    )
    batch = to_tensors(two_samples(((-1.0, 0.0), (math.nan,))))
    result = training_loss(logprobs, entropies, batch, settings, LossScale(2, 1, 10))
    result.loss.backward()
    assert result.loss.item() == pytest.approx(0.005, abs=1e-7)
    assert logprobs.grad.tolist() == pytest.approx([0.1 * 1.0 / 2, 0.0, 0.0])
    assert entropies.grad.tolist() == pytest.approx([-0.005, -0.005, 0.0])
    assert result.sums["kl_reference"].item() == pytest.approx(0.25)
    assert result.sums["entropy"].item() == 2.0
    # |0 - 0.5| and |0 + 0.25|; the filler's 9 counts nowhere
    assert result.sums["logprob_difference_mean"].item() == pytest.approx(0.375)
    assert result.maxima["logprob_difference_max"].item() == 0.5


def test_without_coefficients_entropy_and_reference_have_no_part_in_the_loss() -> None:
    entropies = torch.ones(3, requires_grad=True)
    result = training_loss(
        torch.zeros(3, requires_grad=True),
        entropies,
        to_tensors(two_samples()),
        AlgorithmSettings(),
        LossScale(2, 1, 10),
    )
    result.loss.backward()
    assert entropies.grad is None
    assert "kl_reference" not in result.sums and "importance_mean" not in result.sums


def test_a_penalty_without_the_reference_is_refused() -> None:
    settings = AlgorithmSettings(kl=KLSettings(coefficient=0.1))
    with pytest.raises(ValueError, match="needs the reference's log-probs"):
        training_loss(
            torch.zeros(3), torch.zeros(3), to_tensors(two_samples()), settings, LossScale(2, 1, 10)
        )


# ------------------------------------------------------------------- the reference, and invariances

shapes = st.lists(st.integers(1, 6), min_size=1, max_size=6)
options = st.builds(
    reference.Options,
    ratio=st.sampled_from(["token", "sequence"]),
    loss_aggregation=st.sampled_from(["token-mean", "sequence-mean", "constant"]),
    clip_low=st.sampled_from([0.1, 0.2]),
    clip_high=st.sampled_from([0.2, 0.3]),
    importance_cap=st.sampled_from([None, 1.0, 1.5]),
    kl_coefficient=st.sampled_from([0.0, 0.1]),
    kl_estimator=st.sampled_from(["k1", "k2", "k3"]),
    entropy_coefficient=st.sampled_from([0.0, 0.05]),
)
engine_forms = st.builds(
    reference.Options,
    loss_aggregation=st.sampled_from(["token-mean", "sequence-mean"]),
    loss=st.sampled_from([("dis", 0.8, 1.3), ("dppo", 0.02, 1.2), ("dppo", 0.05, 20.0)]),
    kl_coefficient=st.sampled_from([0.0, 0.1]),
)
learner_forms = st.builds(
    reference.Options,
    loss_aggregation=st.sampled_from(["token-mean", "sequence-mean"]),
    loss=st.sampled_from([None, ("cispo", 0.8, 1.2), ("cispo", 0.0, 5.0)]),
    importance_mask=st.sampled_from([None, (0.8, 1.2)]),
)
every_form = st.one_of(options, engine_forms, learner_forms)


def form_of(chosen: reference.Options) -> LossForm | None:
    if chosen.loss is None:
        return None
    name, first, second = chosen.loss
    if name == "dppo":
        return DPPOLoss(divergence=first, high=second)
    return (DISLoss if name == "dis" else CISPOLoss)(low=first, high=second)


def settings_of(chosen: reference.Options) -> AlgorithmSettings:
    mask = chosen.importance_mask
    return AlgorithmSettings(
        loss=form_of(chosen),
        importance_mask=None if mask is None else ImportanceMaskSettings(low=mask[0], high=mask[1]),
        clip_low=chosen.clip_low,
        clip_high=chosen.clip_high,
        ratio=chosen.ratio,
        loss_aggregation=chosen.loss_aggregation,
        entropy_coefficient=chosen.entropy_coefficient,
        kl=KLSettings(coefficient=chosen.kl_coefficient, estimator=chosen.kl_estimator),
        old_logprobs="learner",
        importance_cap=chosen.importance_cap,
    )


def random_rows(lengths: list[int], seed: int) -> reference.Rows:
    """Ratios on both sides of the clip range; in the padding stands nonsense."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths) + seed % 3)
    padding = torch.arange(shape[1]) >= torch.tensor(lengths)[:, None]

    def draw(scale: float) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * scale - 2.0).masked_fill(padding, 50.0)

    logprobs, old, rollout, frozen = (draw(0.3) for _ in range(4))
    return reference.Rows(logprobs, old, rollout, frozen, draw(0.5) + 3.0, draw(1.0) + 2.0, lengths)


def packed(
    rows: reference.Rows, chosen: list[int], fillers: int = 0
) -> tuple[torch.Tensor, torch.Tensor, MicroBatch]:
    """Log-probs and entropies, flat, and the micro-batch of some of the rows with fillers
    behind.
    """

    def ragged(padded: torch.Tensor) -> tuple[tuple[float, ...], ...]:
        kept = [tuple(padded[i, : rows.lengths_B[i]].tolist()) for i in chosen]
        return (*kept, *[(7.0,)] * fillers)

    batch = micro_batch(
        prompts=((4,),) * (len(chosen) + fillers),
        responses=tuple((5,) * len(row) for row in ragged(rows.old_BT)),
        old=ragged(rows.old_BT),
        rollout=ragged(rows.rollout_BT),
        advantages=ragged(rows.advantages_BT),
        weights=(1.0,) * len(chosen) + (0.0,) * fillers,
        reference=ragged(rows.reference_BT),
    )
    flat = [
        torch.cat([p[i, : rows.lengths_B[i]] for i in chosen] + [torch.full((fillers,), math.nan)])
        for p in (rows.logprobs_BT, rows.entropies_BT)
    ]
    return flat[0], flat[1], batch


def packed_loss(
    rows: reference.Rows, chosen: list[int], options: reference.Options, fillers: int = 0
) -> PolicyLoss:
    logprobs, entropies, batch = packed(rows, chosen, fillers)
    scale = LossScale(sum(rows.lengths_B), len(rows.lengths_B), options.max_response_tokens)
    return training_loss(logprobs, entropies, to_tensors(batch), settings_of(options), scale)


@settings(max_examples=80, deadline=None)
@given(shapes, every_form, st.integers(0, 10**6))
def test_packed_samples_agree_with_padded_rows(
    lengths: list[int], chosen: reference.Options, seed: int
) -> None:
    """The loss, and its gradient for every token: that of padding is 0."""
    rows = random_rows(lengths, seed)
    for tensor in (rows.logprobs_BT, rows.entropies_BT):
        tensor.requires_grad_()
    expected = reference.loss(rows, chosen)
    wanted = torch.autograd.grad(expected, [rows.logprobs_BT, rows.entropies_BT], materialize_grads=True)
    ours = packed_loss(rows, list(range(len(lengths))), chosen, fillers=seed % 2)
    gradients = torch.autograd.grad(ours.loss, [rows.logprobs_BT, rows.entropies_BT], materialize_grads=True)
    assert ours.loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    for mine, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(shapes, every_form, st.integers(0, 10**6), st.integers(1, 4))
def test_any_split_in_any_order_adds_up_to_the_whole(
    lengths: list[int], chosen: reference.Options, seed: int, parts: int
) -> None:
    """Micro-batches and ranks, with fillers where a part has none: loss and metrics are those of
    the whole.
    """
    rows, everyone = random_rows(lengths, seed), list(range(len(lengths)))
    whole = packed_loss(rows, everyone, chosen)
    split = [packed_loss(rows, everyone[start::parts][::-1], chosen, fillers=1) for start in range(parts)]
    assert sum(part.loss.item() for part in split) == pytest.approx(whole.loss.item(), rel=1e-4, abs=1e-5)
    for name, value in whole.sums.items():
        assert sum(part.sums[name].item() for part in split) == pytest.approx(
            value.item(), rel=1e-4, abs=1e-5
        )
    for name, value in whole.maxima.items():
        assert max(part.maxima[name].item() for part in split) == pytest.approx(value.item(), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 10**6))
def test_for_one_token_responses_sequence_and_token_ratio_are_the_same(lengths: list[int], seed: int) -> None:
    rows = random_rows([1] * len(lengths), seed)
    losses = [
        packed_loss(rows, list(range(len(lengths))), reference.Options(ratio=kind)).loss
        for kind in ("token", "sequence")
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6), every_form, st.integers(1, 4), st.integers(32, 200))
def test_sharding_over_ranks_changes_nothing(
    count: int, seed: int, chosen: reference.Options, ranks: int, max_tokens: int
) -> None:
    """Through the real packing, fillers and all: the sum over ranks and micro-batches is the loss
    of one big batch.
    """
    samples = random_samples(count, seed)

    def total(ranks: int, max_tokens: int) -> tuple[float, float]:
        minibatch = pack(samples, ranks, max_tokens)
        scale = LossScale(
            minibatch.num_global_tokens, minibatch.num_global_samples, chosen.max_response_tokens
        )
        loss, clipped = 0.0, 0.0
        for micro in (micro for rank in minibatch.ranks for micro in rank):
            batch = to_tensors(replace(micro, reference_logprobs=micro.old_logprobs))
            # Stands for the model: a log-prob that depends on the token alone.
            logprobs = batch.old_logprobs + 0.5 * torch.tensor(micro.action_ids).float().sin()
            part = training_loss(logprobs, logprobs.exp(), batch, settings_of(chosen), scale)
            loss += part.loss.item()
            clipped += (part.sums["clip_fraction_low"] + part.sums["clip_fraction_high"]).item()
        return loss, clipped

    assert total(ranks, max_tokens) == pytest.approx(total(1, 10**6), rel=1e-4, abs=1e-5)
