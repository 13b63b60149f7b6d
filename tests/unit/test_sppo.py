from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo_ray.algorithms import ALGORITHMS
from sppo_ray.algorithms.sppo import advantages

unit = st.floats(0.0, 1.0)
pairs = st.lists(st.tuples(unit, unit), min_size=1, max_size=20)


def test_advantage_is_reward_minus_value() -> None:
    # 1 - 0.75 = 0.25;  0 - 0.75 = -0.75;  0.5 - 0.5 = 0
    assert advantages([1.0, 0.0, 0.5], [0.75, 0.75, 0.5]) == [0.25, -0.75, 0.0]


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError):
        advantages([1.0, 0.0], [0.5])


@given(pairs)
def test_a_sample_needs_no_other_sample(rows: list[tuple[float, float]]) -> None:
    rewards, values = zip(*rows, strict=True)
    together = advantages(rewards, values)
    assert together == [advantages([r], [v])[0] for r, v in rows]
    assert advantages(rewards[::-1], values[::-1]) == together[::-1]
    assert all(-1.0 <= advantage <= 1.0 for advantage in together)


def test_the_table_chooses_sppo_by_its_type() -> None:
    assert ALGORITHMS["sppo"].advantages is advantages


def test_choosing_an_algorithm_imports_no_torch() -> None:
    code = "import sys, sppo_ray.algorithms, sppo_ray.data.batching; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
