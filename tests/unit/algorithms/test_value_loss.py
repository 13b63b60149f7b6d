from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.algorithms.value_loss import explained_variance, token_value_loss, value_loss
from sppo_ray.errors import UserError
from tests.reference_sppo import critic_loss


def test_worked_example() -> None:
    # logit 0 -> value 1/2, reward 1: -log(1/2).  logit log 3 -> value 3/4, reward 0: -log(1/4).
    # mean = (log 2 + log 4) / 2 = 1.5 log 2;  brier = (0.25 + 0.5625) / 2
    result = value_loss(torch.tensor([0.0, math.log(3.0)]), torch.tensor([1.0, 0.0]), num_global_samples=2)
    assert result.loss.item() == pytest.approx(1.5 * math.log(2.0))
    assert result.sums["brier"].item() == pytest.approx(0.40625)
    assert result.sums["value_mean"].item() == pytest.approx(0.625)
    assert result.sums["reward_mean"].item() == 0.5


def test_gradient_is_value_minus_reward() -> None:
    logits = torch.tensor([0.0, math.log(3.0)], requires_grad=True)
    value_loss(logits, torch.tensor([1.0, 0.25]), num_global_samples=2).loss.backward()
    assert logits.grad.tolist() == pytest.approx([(0.5 - 1.0) / 2, (0.75 - 0.25) / 2])


@pytest.mark.parametrize("reward", [-1.0, 1.0001, math.nan, math.inf])
def test_a_reward_outside_the_unit_interval_is_refused_by_name(reward: float) -> None:
    with pytest.raises(UserError, match=r"sample 1 lies outside \[0, 1\].*rescale"):
        value_loss(torch.zeros(2), torch.tensor([0.5, reward]), num_global_samples=2)


def test_extreme_logits_stay_finite() -> None:
    result = value_loss(torch.tensor([1e4, -1e4]), torch.tensor([0.0, 0.0]), num_global_samples=2)
    assert result.loss.item() == pytest.approx(5e3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5, width=32), st.floats(0, 1, width=32)), min_size=2, max_size=10))
def test_any_split_adds_up_to_the_reference(rows: list[tuple[float, float]]) -> None:
    logits, rewards = (torch.tensor(column) for column in zip(*rows, strict=True))
    parts = [value_loss(logits[i::2], rewards[i::2], num_global_samples=len(rows)) for i in range(2)]
    assert sum(part.loss.item() for part in parts) == pytest.approx(
        critic_loss(logits, rewards).item(), abs=1e-5
    )


def test_explained_variance() -> None:
    # rewards 0 and 1, variance 1/4. Perfect values: errors 0 -> 1. Constant 1/2: errors +-1/2 -> 1
    # - 0.25 / 0.25 = 0.
    assert explained_variance(reward_mean=0.5, reward_square=0.5, error_mean=0.0, brier=0.0) == 1.0
    assert explained_variance(reward_mean=0.5, reward_square=0.5, error_mean=0.0, brier=0.25) == 0.0
    assert explained_variance(reward_mean=1.0, reward_square=1.0, error_mean=0.5, brier=0.25) == 0.0


# ------------------------------------------------------------------------------------- token critic


def test_squared_error_on_paper() -> None:
    # errors 1 - 0.5 and 0 - 1: (0.25 + 1) / 2 / 2 tokens = 0.3125; the gradient is (value - return)
    # / 2
    values = torch.tensor([0.5, 1.0], requires_grad=True)
    result = token_value_loss(values, torch.tensor([1.0, 0.0]), kind="mse", num_global_tokens=2)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(0.3125)
    assert values.grad.tolist() == pytest.approx([-0.25, 0.5])
    assert result.sums["value_mean"].item() == 0.75
    assert result.sums["reward_mean"].item() == 0.5
    assert result.sums["brier"].item() == pytest.approx(0.625)
    assert result.sums["error_mean"].item() == pytest.approx(-0.25)


def test_squared_error_takes_any_return_and_cross_entropy_only_probabilities() -> None:
    returns = torch.tensor([0.5, -2.0])
    assert token_value_loss(
        torch.zeros(2), returns, kind="mse", num_global_tokens=2
    ).loss.item() == pytest.approx(4.25 / 4)
    with pytest.raises(UserError, match=r"reward -2.0 of token 1 lies outside \[0, 1\]"):
        token_value_loss(torch.zeros(2), returns, kind="bce", num_global_tokens=2)


def test_cross_entropy_at_a_token_is_that_of_a_prompt() -> None:
    logits, targets = torch.tensor([0.0, math.log(3.0), -1.0]), torch.tensor([1.0, 0.0, 0.3])
    token = token_value_loss(logits, targets, kind="bce", num_global_tokens=3)
    prompt = value_loss(logits, targets, num_global_samples=3)
    assert token.loss.item() == prompt.loss.item()
    assert {name: value.item() for name, value in token.sums.items()} == {
        n: v.item() for n, v in prompt.sums.items()
    }


def test_no_tokens_give_a_loss_of_zero_that_can_be_differentiated() -> None:
    values = torch.ones(1, requires_grad=True)
    result = token_value_loss(values[:0], torch.zeros(0), kind="mse", num_global_tokens=5)
    result.loss.backward()
    assert result.loss.item() == 0.0 and values.grad.tolist() == [0.0]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 5, width=32), st.floats(0, 1, width=32)), min_size=2, max_size=12),
    st.sampled_from(["mse", "bce"]),
)
def test_any_split_of_tokens_adds_up(rows: list[tuple[float, float]], kind: str) -> None:
    outputs, returns = (torch.tensor(column) for column in zip(*rows, strict=True))
    whole = token_value_loss(outputs, returns, kind=kind, num_global_tokens=len(rows))
    parts = [
        token_value_loss(outputs[i::2], returns[i::2], kind=kind, num_global_tokens=len(rows))
        for i in range(2)
    ]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-5, abs=1e-6)
    for name, value in whole.sums.items():
        assert sum(part.sums[name].item() for part in parts) == pytest.approx(
            value.item(), rel=1e-4, abs=1e-5
        )
    if kind == "mse":
        by_torch = torch.nn.functional.mse_loss(outputs, returns) / 2
        assert whole.loss.item() == pytest.approx(by_torch.item(), rel=1e-5, abs=1e-7)
