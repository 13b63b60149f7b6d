"""Loss forms with numbers on paper, and their gradients against autograd of a ratio that is not
detached.

Parity with padded rows and every split is in test_policy_loss.py, with TRL in test_trl_parity.py.
"""

from __future__ import annotations

import math

import pytest
import torch

from sppo_ray.algorithms.base import AlgorithmSettings
from sppo_ray.algorithms.loss_settings import CISPOLoss, DISLoss, DPPOLoss, ImportanceMaskSettings, LossForm
from sppo_ray.algorithms.policy_loss import (
    LossScale,
    PolicyLoss,
    effective_sample_size,
    importance_weights,
    training_loss,
)
from sppo_ray.algorithms.tensor_ops import to_tensors
from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from tests.training_data import micro_batch


def loss_of(
    form: LossForm | None,
    new: torch.Tensor,
    engine: list[float],
    advantages: list[float],
    old: list[float] | None = None,
    **more: object,
) -> PolicyLoss:
    """Of one response; `engine` and `old` are probabilities."""
    logs = [math.log(p) for p in engine]
    batch = micro_batch(
        ((4,),),
        ((5,) * len(engine),),
        ([math.log(p) for p in old] if old else logs,),
        (logs,),
        (advantages,),
        (1.0,),
    )
    settings = AlgorithmSettings(loss=form, **more)
    count = len(engine)
    return training_loss(new, torch.ones(count), to_tensors(batch), settings, LossScale(count, 1, 10))


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log().requires_grad_()


def test_dis_masks_on_both_sides_whatever_the_sign() -> None:
    # r = pi / pi_engine: .6/.5 = 1.2 kept; .3/.5 = .6 <= .7 masked; .7/.1 = 7 >= 6 masked, though
    # PPO would clip neither at A = -1 above nor at A = 1 below.
    new = logs(0.6, 0.3, 0.7)
    result = loss_of(DISLoss(), new, [0.5, 0.5, 0.1], [1.0, 1.0, -1.0])
    result.loss.backward()
    # loss = -(1.2 * 1 * log .6) / 3;  gradient -r A / 3
    assert result.loss.item() == pytest.approx(-1.2 * math.log(0.6) / 3, abs=1e-6)
    assert new.grad.tolist() == pytest.approx([-0.4, 0.0, 0.0], abs=1e-6)
    names = ("clip_fraction_low", "clip_fraction_high", "masked_fraction")
    assert [result.sums[name].item() for name in names] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert result.maxima["ratio_max"].item() == pytest.approx(7.0, rel=1e-5)


def test_dppo_masks_what_has_moved_far_enough_by_probability() -> None:
    # pi - pi_engine: +.2 and A = 1 masked; +.2 and A = -1 kept, r = 1.4; -.2 and A = -1 masked;
    # +.01 and A = 1 kept though r = 11, capped at 5
    new = logs(0.7, 0.7, 0.3, 0.011)
    result = loss_of(
        DPPOLoss(divergence=0.15, high=5.0), new, [0.5, 0.5, 0.5, 0.001], [1.0, -1.0, -1.0, 1.0]
    )
    result.loss.backward()
    assert new.grad.tolist() == pytest.approx([0.0, 1.4 / 4, 0.0, -5.0 / 4], abs=1e-5)
    expected = -(1.4 * -1 * math.log(0.7) + 5 * math.log(0.011)) / 4
    assert result.loss.item() == pytest.approx(expected, rel=1e-5)
    names = ("clip_fraction_low", "clip_fraction_high", "masked_fraction")
    assert [result.sums[name].item() for name in names] == [0.25, 0.25, 0.5]


def test_cispo_clips_the_weight_and_keeps_every_gradient() -> None:
    # r = pi / pi_old, clipped to [.5, 2]: .6/.5 = 1.2; .9/.3 = 3 -> 2; .1/.5 = .2 -> .5
    new = logs(0.6, 0.9, 0.1)
    result = loss_of(
        CISPOLoss(low=0.5, high=2.0), new, [0.4] * 3, [1.0, 1.0, -1.0], old=[0.5, 0.3, 0.5]
    )
    result.loss.backward()
    assert new.grad.tolist() == pytest.approx([-1.2 / 3, -2 / 3, 0.5 / 3], abs=1e-6)
    assert result.loss.item() == pytest.approx(
        -(1.2 * math.log(0.6) + 2 * math.log(0.9) - 0.5 * math.log(0.1)) / 3, abs=1e-6
    )
    names = ("clip_fraction_low", "clip_fraction_high", "masked_fraction")
    assert [result.sums[name].item() for name in names] == pytest.approx([1 / 3, 1 / 3, 0.0])


def test_icepop_masks_importance_weights() -> None:
    # pi_learner / pi_engine: .4 < .5 and 6 > 5 masked; 2 stays, or 1.5 with the cap
    ratios = torch.tensor([0.4, 2.0, 6.0]).log()
    mask = ImportanceMaskSettings()
    assert importance_weights(ratios, torch.zeros(3), None, mask).tolist() == pytest.approx([0.0, 2.0, 0.0])
    assert importance_weights(ratios, torch.zeros(3), 1.5, mask).tolist() == pytest.approx([0.0, 1.5, 0.0])
    new = logs(0.5, 0.5)  # equal to pi_old, so PPO's ratio is 1
    result = loss_of(
        None, new, [0.25, 0.08], [1.0, 1.0], old=[0.5, 0.5], old_logprobs="learner", importance_mask=mask
    )
    result.loss.backward()
    assert new.grad.tolist() == pytest.approx([-2 / 2, 0.0])  # .5 / .25 = 2; .5 / .08 = 6.25 > 5
    assert result.sums["masked_fraction"].item() == 0.5
    assert result.sums["importance_mean"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("form", [DISLoss(), DPPOLoss(), CISPOLoss(low=0.1, high=8.0)])
def test_inside_the_bounds_the_gradient_is_that_of_the_ratio_itself(form: LossForm) -> None:
    """d(-r A) = -r A d(log pi): what importance-weighted REINFORCE has, without the term 1 + log pi
    that a weight with gradient would add.
    """
    generator = torch.Generator().manual_seed(4)
    engine = (0.2 + 0.5 * torch.rand(20, generator=generator)).tolist()
    moved = torch.tensor(engine) + 0.1 * torch.rand(20, generator=generator)
    advantages = torch.randn(20, generator=generator)
    ours, plain = moved.log().requires_grad_(), moved.log().requires_grad_()
    loss_of(form, ours, engine, advantages.tolist()).loss.backward()
    (-(plain - torch.tensor(engine).log()).exp() * advantages).mean().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


@pytest.mark.parametrize("form", [DISLoss(), DPPOLoss(), CISPOLoss()])
def test_a_token_that_left_its_bounds_by_far_is_finite(form: LossForm) -> None:
    """exp(500) is inf, and inf * 0 or -inf * 0 would spoil the whole batch."""
    new = torch.tensor([0.0, -math.inf, -1.0]).requires_grad_()
    batch = to_tensors(
        micro_batch(
            ((4,),), ((5, 6, 7),), ((-500.0, -1.0, -1.0),), ((-500.0, -1.0, -1.0),), ((1.0,) * 3,), (1.0,)
        )
    )
    result = training_loss(new, torch.ones(3), batch, AlgorithmSettings(loss=form), LossScale(3, 1, 10))
    result.loss.backward()
    assert math.isfinite(result.loss.item()) and torch.isfinite(new.grad).all()
    assert new.grad[2].item() == pytest.approx(-1 / 3)


def test_a_wholly_masked_micro_batch_has_metrics() -> None:
    result = loss_of(DISLoss(), logs(0.01, 0.02), [0.9, 0.9], [1.0, -1.0])
    assert result.loss.item() == 0.0 and result.sums["masked_fraction"].item() == 1.0
    assert all(math.isfinite(value.item()) for value in (result.sums | result.maxima).values())


def test_effective_sample_size() -> None:
    # r = 1, 1, 1, 3: (6 / 4)^2 / (12 / 4) = .75.  All equal: 1.  One of n: 1 / n
    result = loss_of(None, logs(0.1, 0.1, 0.1, 0.3), [0.1] * 4, [1.0] * 4)
    moments = [result.sums[f"engine_ratio_{name}"].item() for name in ("mean", "square")]
    assert effective_sample_size(*moments) == pytest.approx(0.75, rel=1e-5)
    assert effective_sample_size(2.0, 4.0) == 1.0
    assert effective_sample_size(1 / 10, 1 / 10) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["loss.type=dis", "ratio=sequence"], "set ratio to token, or loss to null"),
        (["loss.type=dppo", "old_logprobs=learner", "importance_cap=2"], "correct the engine twice"),
        (["loss.type=dis", "old_logprobs=learner", "importance_mask.low=0.5"], "correct the engine twice"),
        (["importance_mask.low=0.5"], "set old_logprobs to learner, or importance_mask to null"),
        (["loss.type=tis"], "there is no 'tis'"),
        (["loss.type=dis", "loss.high=0.9"], "high"),
        (["loss.type=dis", "loss.divergence=0.1"], "it belongs to type dppo"),
    ],
)
def test_settings_that_do_not_work_together(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("quickstart", [f"algorithm.{override}" for override in overrides])
    assert told in str(caught.value)


def test_every_algorithm_takes_a_form_by_its_type() -> None:
    config = load_config("quickstart", ["algorithm.type=reinforce", "algorithm.loss={type: dis, low: 0.2}"])
    assert config.algorithm.loss == DISLoss(low=0.2, high=6.0)
    assert load_config("quickstart").algorithm.loss is None
