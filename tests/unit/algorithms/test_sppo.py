from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo_ray.algorithms import ALGORITHMS
from sppo_ray.algorithms.base import RewardedSample
from sppo_ray.algorithms.sppo import SPPOSettings, advantages

unit = st.floats(0.0, 1.0)
SETTINGS = SPPOSettings()


def sampled(reward: float, value: float | None) -> RewardedSample:
    return RewardedSample("p", reward, num_tokens=3, value=value)


def test_advantage_is_reward_minus_value() -> None:
    # 1 - 0.75 = 0.25;  0 - 0.75 = -0.75;  0.5 - 0.5 = 0
    samples = [sampled(1.0, 0.75), sampled(0.0, 0.75), sampled(0.5, 0.5)]
    assert advantages(samples, SETTINGS) == [0.25, -0.75, 0.0]


def test_centered_advantages_lose_the_error_that_all_values_share() -> None:
    # raw 0.5, -0.5, -0.5, -0.5: mean -0.25
    samples = [sampled(reward, 0.5) for reward in (1.0, 0.0, 0.0, 0.0)]
    centered = SPPOSettings(center=True)
    assert advantages(samples, centered) == [0.75, -0.25, -0.25, -0.25]
    # that is REINFORCE, when the critic tells no prompt from another
    plain = ALGORITHMS["reinforce"]
    assert advantages(samples, centered) == plain.advantages(samples, plain.settings())
    # a critic that is right on average, 1 - 0.9 - 0.1 = 0, stays as it is
    fair = [sampled(1.0, 0.9), sampled(0.0, 0.1)]
    assert advantages(fair, centered) == pytest.approx([0.1, -0.1])
    assert advantages(fair, centered) == pytest.approx(advantages(fair, SETTINGS))


def test_only_a_negative_mean_is_subtracted_when_so_set() -> None:
    one_sided = SPPOSettings(center="negative")
    high = [sampled(reward, 0.5) for reward in (1.0, 0.0, 0.0, 0.0)]  # mean -0.25
    assert advantages(high, one_sided) == [0.75, -0.25, -0.25, -0.25]
    low = [sampled(reward, 0.25) for reward in (1.0, 1.0, 0.0, 0.0)]  # mean 0.25
    assert advantages(low, one_sided) == [0.75, 0.75, -0.25, -0.25]


@given(st.lists(st.tuples(unit, st.floats(0.0, 0.5)), min_size=1, max_size=20), st.floats(0.0, 0.5))
def test_the_level_of_the_values_does_not_count_when_centered(
    rows: list[tuple[float, float]], shift: float
) -> None:
    centered = SPPOSettings(center=True)
    here = advantages([sampled(reward, value) for reward, value in rows], centered)
    there = advantages([sampled(reward, value + shift) for reward, value in rows], centered)
    assert here == pytest.approx(there, abs=1e-12) and sum(here) == pytest.approx(0.0, abs=1e-12)
    assert all(-2.0 <= advantage <= 2.0 for advantage in here)


def test_a_sample_without_a_value_is_named() -> None:
    with pytest.raises(ValueError, match="p: Sequence-Level PPO needs the prompt critic's value"):
        advantages([sampled(1.0, None)], SETTINGS)


@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=20))
def test_a_sample_needs_no_other_sample(rows: list[tuple[float, float]]) -> None:
    samples = [sampled(reward, value) for reward, value in rows]
    together = advantages(samples, SETTINGS)
    assert together == [advantages([sample], SETTINGS)[0] for sample in samples]
    assert advantages(samples[::-1], SETTINGS) == together[::-1]
    assert all(-1.0 <= advantage <= 1.0 for advantage in together)


def test_the_table_chooses_sppo_by_its_type() -> None:
    assert ALGORITHMS["sppo"].advantages is advantages


def test_choosing_an_algorithm_imports_no_torch() -> None:
    code = (
        "import sys, sppo_ray.algorithms, sppo_ray.data.packing; assert not {'torch', 'ray'} & "
        "set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
