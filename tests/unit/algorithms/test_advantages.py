"""Advantages of each algorithm: hand-computed numbers, parity with a reference, invariances."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.algorithms import ALGORITHMS, grpo, ppo, reinforce, reinforce_pp, remax, rloo, sao, spo, sppo
from sppo_ray.algorithms import gae as token_gae
from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, RewardedSample
from sppo_ray.types import PromptHistory
from tests import reference_algorithms as reference


def of_group(group: str, *rewards: float) -> list[RewardedSample]:
    return [RewardedSample(group, reward, num_tokens=2) for reward in rewards]


def with_values(reward: float, *values: float) -> RewardedSample:
    return RewardedSample("p", reward, len(values), token_values=np.array(values))


def lists(rows: Sequence[Advantage]) -> list[list[float] | float]:
    return [row.tolist() if isinstance(row, np.ndarray) else row for row in rows]


def gae(reward: float, values: list[float], **options: float) -> list[float]:
    (row,) = token_gae.gae([reward], [np.array(values)], **options)
    return row.tolist()


# ----------------------------------------------------------------------------------------- on paper


def test_ppo_with_lambda_one_is_reward_minus_value() -> None:
    # 1 - 0.25, 1 - 0.5, 1 - 0.75
    assert gae(1.0, [0.25, 0.5, 0.75], gamma=1.0, lam=1.0) == [0.75, 0.5, 0.25]


def test_ppo_with_lambda_zero_is_the_temporal_difference() -> None:
    # V_1 - V_0 = 0.25, V_2 - V_1 = 0.25, and R - V_2 = -0.75
    assert gae(0.0, [0.25, 0.5, 0.75], gamma=1.0, lam=0.0) == [0.25, 0.25, -0.75]


def test_ppo_discounts_and_blends() -> None:
    # delta_1 = 1 - 0.5 = 0.5;  delta_0 = 0.5 * 0.5 - 0.25 = 0;  A_0 = 0 + (0.5 * 0.5) * 0.5 = 0.125
    assert gae(1.0, [0.25, 0.5], gamma=0.5, lam=0.5) == [0.125, 0.5]
    # G_0 = 0.125 + 0.25;  G_1 = 0.5 + 0.5
    (targets,) = token_gae.lambda_returns([1.0], [np.array([0.25, 0.5])], gamma=0.5, lam=0.5)
    assert targets.tolist() == [0.375, 1.0]


def test_ppo_whitens_over_all_tokens_of_the_step() -> None:
    # raw advantages 1 | -1, 0: mean 0, sample variance (1 + 1 + 0) / 2 = 1: whitening leaves them
    # as they are
    samples = [with_values(1.0, 0.0), with_values(0.0, 1.0, 0.0)]
    white = [pytest.approx([1.0]), pytest.approx([-1.0, 0.0])]
    assert ppo.advantages(samples, ppo.PPOSettings()) == white
    # 3 | 1, 2 has mean 2 and sample variance 1, so the same comes out; unwhitened it does not.
    # Returns are never whitened.
    shifted = [with_values(3.0, 0.0), with_values(2.0, 1.0, 0.0)]
    assert ppo.advantages(shifted, ppo.PPOSettings()) == white
    assert lists(ppo.advantages(shifted, ppo.PPOSettings(whiten=False))) == [[3.0], [1.0, 2.0]]
    assert lists(ppo.returns(shifted, ppo.PPOSettings())) == [[3.0], [2.0, 2.0]]


def test_ppo_has_a_lambda_for_the_critic_of_its_own() -> None:
    # lam 0: V_1 - V_0 = .25 and R - V_1 = .5; targets with lambda 1 are the reward
    sample, decoupled = with_values(1.0, 0.25, 0.5), ppo.PPOSettings(lam=0.0, critic_lam=1.0, whiten=False)
    assert lists(ppo.advantages([sample], decoupled)) == [[0.25, 0.5]]
    assert lists(ppo.returns([sample], decoupled)) == [[1.0, 1.0]]
    assert lists(ppo.returns([sample], ppo.PPOSettings(lam=0.0))) == [[0.5, 1.0]]


def test_sao_has_a_lambda_for_each_length() -> None:
    # alpha 1: lambda = 1 - 1/2 for two tokens and 1 - 1/4 for four.
    # Two: A_1 = 1 - .5 = .5;  A_0 = (.5 - .25) + .5 * .5 = .5
    # Four, V = 0: A_t = .75^(3 - t) R
    settings = sao.SAOSettings(alpha=1.0)
    samples = [with_values(1.0, 0.25, 0.5), with_values(1.0, 0.0, 0.0, 0.0, 0.0)]
    two, four = sao.advantages(samples, settings)
    assert list(two) == pytest.approx([0.5, 0.5])
    assert list(four) == pytest.approx([0.75**3, 0.75**2, 0.75, 1.0])
    assert lists(sao.returns(samples, settings)) == [[1.0] * 2, [1.0] * 4]  # critic_lam is 1
    # published: alpha 1.5 gives the first of many tokens exp(-1 / 1.5) = .51 of the reward
    long = token_gae.length_adaptive_lambda(1.5, 10_000)
    assert long**9_999 == pytest.approx(math.exp(-1 / 1.5), abs=1e-4)
    assert token_gae.length_adaptive_lambda(0.05, 10) == 0.0  # not -1
    assert settings.loss is not None and (settings.loss.type, settings.loss.low, settings.loss.high) == (
        "dis",
        0.7,
        6.0,
    )


def test_spo_subtracts_the_prompts_past_rate_and_scales_over_the_step() -> None:
    # 1 - .75 = .25 and 0 - .25 = -.25: mean 0, deviation .25
    histories = PromptHistory(0.75, 4.0, 1.0), PromptHistory(0.25, 4.0, 1.0)
    samples = [
        RewardedSample("p", 1.0, 2, history=histories[0]),
        RewardedSample("q", 0.0, 2, history=histories[1]),
    ]
    assert spo.advantages(samples, spo.SPOSettings(normalize=False)) == [0.25, -0.25]
    assert spo.advantages(samples, spo.SPOSettings()) == pytest.approx([1.0, -1.0])


def test_spo_on_fresh_prompts_is_reinforce_pp() -> None:
    # a rate of 1/2 for all is a constant, which the mean takes out
    samples = [RewardedSample("p", r, 2, history=PromptHistory(0.5, 0.0, 1.0)) for r in (1.0, 0.0, 0.0, 0.0)]
    assert spo.advantages(samples, spo.SPOSettings()) == pytest.approx([3**0.5] + [-(3**-0.5)] * 3)


def test_spo_scales_what_failed_everywhere_to_one() -> None:
    # rates .02 and .04, both fail: -.02 and -.04, mean -.03, deviation .01. Raw they stay small.
    samples = [RewardedSample("p", 0.0, 2, history=PromptHistory(rate, 8.0, 1.0)) for rate in (0.02, 0.04)]
    assert spo.advantages(samples, spo.SPOSettings()) == pytest.approx([1.0, -1.0], abs=1e-5)
    assert spo.advantages(samples, spo.SPOSettings(normalize=False)) == [-0.02, -0.04]


def test_sppo_with_a_tracker_blends_value_and_past_rate() -> None:
    # 1 - (.5 + .25 * (.9 - .5)) = .4
    sample = RewardedSample("p", 1.0, 2, value=0.5, history=PromptHistory(0.9, 3.0, 0.25))
    assert sppo.advantages([sample], sppo.SPPOSettings()) == pytest.approx([0.4])


def test_reinforce_pp_scales_over_the_step() -> None:
    # mean of 1, 0, 0, 0 = 1/4; deviation sqrt((9/16 + 3 * 1/16) / 4) = sqrt(3) / 4
    # (3/4) / (sqrt(3) / 4) = sqrt(3);  (-1/4) / (sqrt(3) / 4) = -1 / sqrt(3)
    settings = reinforce_pp.ReinforcePPSettings()
    samples = of_group("p", 1.0, 0.0) + of_group("q", 0.0, 0.0)
    assert reinforce_pp.advantages(samples, settings) == pytest.approx([3**0.5] + [-(3**-0.5)] * 3)
    assert reinforce_pp.advantages(of_group("p", 1.0, 1.0), settings) == [0.0, 0.0]


def test_grpo_centres_and_scales_within_the_group() -> None:
    # 1, 0, 0, 1: mean 1/2, sample deviation sqrt(4 * 0.25 / 3) = 0.57735; 0.5 / (0.57735 + 0.0001)
    # = 0.86587
    samples = of_group("p", 1.0, 0.0, 0.0, 1.0)
    assert grpo.advantages(samples, grpo.GRPOSettings()) == pytest.approx(
        [0.86587, -0.86587, -0.86587, 0.86587], abs=1e-5
    )
    assert grpo.advantages(samples, grpo.GRPOSettings(normalize_std=False)) == [0.5, -0.5, -0.5, 0.5]


def test_rloo_leaves_one_out() -> None:
    # 1 - (0 + 0.5) / 2 = 0.75;  0 - (1 + 0.5) / 2 = -0.75;  0.5 - (1 + 0) / 2 = 0
    assert rloo.advantages(of_group("p", 1.0, 0.0, 0.5), rloo.RLOOSettings()) == [0.75, -0.75, 0.0]


def test_remax_subtracts_the_greedy_reward() -> None:
    samples = [
        RewardedSample("p", 1.0, 2, baseline_reward=0.0),
        RewardedSample("q", 0.25, 2, baseline_reward=1.0),
    ]
    assert remax.advantages(samples, remax.ReMaxSettings()) == [1.0, -0.75]


def test_reinforce_subtracts_the_mean_of_the_step() -> None:
    # mean of 1, 0, 0, 0 over two prompts = 1/4
    samples = of_group("p", 1.0, 0.0) + of_group("q", 0.0, 0.0)
    assert reinforce.advantages(samples, reinforce.REINFORCESettings()) == [0.75, -0.25, -0.25, -0.25]
    assert reinforce.advantages(samples[:1], reinforce.REINFORCESettings()) == [0.0]


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_a_group_of_equal_rewards_has_advantage_zero(name: str) -> None:
    # "p" was right every time; of "q" one sample is left, the verifier failed on the others
    samples = of_group("p", 1.0, 1.0, 1.0) + of_group("q", 1.0)
    assert ALGORITHMS[name].advantages(samples, ALGORITHMS[name].settings()) == [0.0] * 4


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (sppo, "p: Sequence-Level PPO needs the prompt critic's value"),
        (spo, "p: SPO needs the prompt's past success rate"),
        (ppo, "p: PPO needs the token critic's value before each of the response's 2 tokens, got 0"),
        (remax, "p: ReMax needs the reward of the greedy response"),
    ],
)
def test_what_a_sample_lacks_is_said(module: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module.advantages(of_group("p", 1.0), None)


def test_empty_input_gives_empty_output() -> None:
    assert all(spec.advantages([], spec.settings()) == [] for spec in ALGORITHMS.values())


# ------------------------------------------------------------------- the reference, and invariances

unit = st.floats(0.0, 1.0)
responses = st.lists(st.tuples(unit, st.lists(unit, min_size=1, max_size=8)), min_size=1, max_size=6)
graded = st.lists(st.tuples(st.sampled_from("pqrs"), unit), min_size=1, max_size=16)


@given(responses, unit, unit)
def test_ppo_agrees_with_the_reference(
    rows: list[tuple[float, list[float]]], gamma: float, lam: float
) -> None:
    samples = [with_values(reward, *values) for reward, values in rows]
    expected = [reference.gae(reward, values, gamma, lam) for reward, values in rows]
    raw = ppo.PPOSettings(gamma=gamma, lam=lam, whiten=False)
    for sample, row, target, wanted in zip(
        samples, ppo.advantages(samples, raw), ppo.returns(samples, raw), expected, strict=True
    ):
        assert row == pytest.approx(wanted, abs=1e-9)
        assert target == pytest.approx(
            [a + v for a, v in zip(wanted, sample.token_values, strict=True)], abs=1e-9
        )
    if len({value for row in expected for value in row}) > 1:
        white = ppo.advantages(samples, raw.model_copy(update={"whiten": True}))
        flat = [value for row in white for value in row]
        assert flat == pytest.approx(
            [value for row in reference.whiten(expected) for value in row], rel=1e-3, abs=1e-4
        )


@given(responses, unit, unit)
def test_ppo_of_a_step_is_the_recurrence_of_each_response_to_the_bit(
    rows: list[tuple[float, list[float]]], gamma: float, lam: float
) -> None:
    """Every operation rounds as in a loop over Python floats, whatever the other lengths are."""
    samples = [with_values(reward, *values) for reward, values in rows]
    expected = []
    for reward, values in rows:
        targets = [reward]
        for next_value in reversed(values[1:]):
            targets.insert(0, gamma * ((1.0 - lam) * next_value + lam * targets[0]))
        expected.append(targets)
    raw = ppo.PPOSettings(gamma=gamma, lam=lam, whiten=False)
    assert lists(ppo.returns(samples, raw)) == expected
    assert lists(ppo.advantages(samples, raw)) == [
        [target - value for target, value in zip(targets, values, strict=True)]
        for targets, (_, values) in zip(expected, rows, strict=True)
    ]
    found = [*ppo.returns(samples, raw), *ppo.advantages(samples, raw)]
    assert all(row.dtype == np.float64 and row.base is None for row in found)


@given(responses, unit, unit)
def test_returns_stay_where_cross_entropy_is_defined(
    rows: list[tuple[float, list[float]]], gamma: float, lam: float
) -> None:
    samples = [with_values(reward, *values) for reward, values in rows]
    settings = ppo.PPOSettings(gamma=gamma, lam=lam, critic_loss="bce")
    assert all(0.0 <= target <= 1.0 + 1e-12 for row in ppo.returns(samples, settings) for target in row)
    exact = ppo.returns(samples, ppo.PPOSettings())
    assert lists(exact) == [[sample.reward] * sample.num_tokens for sample in samples]


@given(graded, st.booleans())
def test_group_methods_agree_with_the_reference(rows: list[tuple[str, float]], normalize: bool) -> None:
    samples = [RewardedSample(group, reward, 1) for group, reward in rows]
    groups, rewards = zip(*rows, strict=True)
    assert rloo.advantages(samples, rloo.RLOOSettings()) == pytest.approx(
        reference.leave_one_out(groups, rewards), abs=1e-9
    )
    assert grpo.advantages(samples, grpo.GRPOSettings(normalize_std=normalize)) == pytest.approx(
        reference.group_relative(groups, rewards, normalize), abs=1e-7
    )


@given(graded)
def test_leave_one_out_is_the_centred_reward_scaled(rows: list[tuple[str, float]]) -> None:
    """RLOO = G / (G - 1) times GRPO without its deviation."""
    samples = [RewardedSample(group, reward, 1) for group, reward in rows]
    sizes = {group: sum(other == group for other, _ in rows) for group, _ in rows}
    centred = grpo.advantages(samples, grpo.GRPOSettings(normalize_std=False))
    scaled = [a * sizes[g] / max(1, sizes[g] - 1) for a, (g, _) in zip(centred, rows, strict=True)]
    assert rloo.advantages(samples, rloo.RLOOSettings()) == pytest.approx(scaled, abs=1e-9)


complete = st.lists(
    st.tuples(st.sampled_from("pqr"), unit, unit, unit, st.lists(unit, min_size=1, max_size=4)),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(complete, st.sampled_from(sorted(ALGORITHMS)), st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(
    rows: list[tuple[str, float, float, float, list[float]]], name: str, draw: random.Random
) -> None:
    """To the bit: sums are exact. Group methods see groups in any order and scattered; a token's
    neighbours stay.
    """
    samples = [
        RewardedSample(g, reward, len(v), value, np.array(v), greedy, PromptHistory(v[0], 2.0, greedy))
        for g, reward, value, greedy, v in rows
    ]
    spec, order = ALGORITHMS[name], list(range(len(samples)))
    draw.shuffle(order)
    here = lists(spec.advantages(samples, spec.settings()))
    there = lists(spec.advantages([samples[index] for index in order], spec.settings()))
    assert there == [here[index] for index in order]


@given(complete, st.sampled_from([name for name, spec in ALGORITHMS.items() if spec.needs != "step"]))
def test_no_more_is_needed_than_is_said(
    rows: list[tuple[str, float, float, float, list[float]]], name: str
) -> None:
    """`needs: sample` gives the same for each sample alone, `needs: group` for each group alone."""
    samples = [
        RewardedSample(g, reward, len(v), value, np.array(v), greedy, PromptHistory(v[0], 2.0, greedy))
        for g, reward, value, greedy, v in rows
    ]
    spec: object = ALGORITHMS[name]
    together = spec.advantages(samples, spec.settings())
    keys = list(range(len(samples))) if spec.needs == "sample" else [sample.group for sample in samples]
    for key in set(keys):
        chosen = [index for index, other in enumerate(keys) if other == key]
        alone = spec.advantages([samples[index] for index in chosen], spec.settings())
        assert alone == [together[index] for index in chosen]


@given(graded, st.floats(-2.0, 2.0), st.floats(0.5, 4.0))
def test_baselines_take_out_a_shift_of_the_reward(
    rows: list[tuple[str, float]], shift: float, scale: float
) -> None:
    for name in ("grpo", "rloo", "reinforce"):
        spec = ALGORITHMS[name]
        options: AlgorithmSettings = spec.settings(**({"normalize_std": False} if name == "grpo" else {}))
        plain = spec.advantages([RewardedSample(g, r, 1) for g, r in rows], options)
        moved = spec.advantages([RewardedSample(g, scale * r + shift, 1) for g, r in rows], options)
        assert moved == pytest.approx([scale * a for a in plain], abs=1e-9)
        assert math.isfinite(sum(moved))
