"""The layout of a version in its flat buffer, and its digest. Needs neither engine nor torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.weights.layout import WeightsRefused, require_complete, spans
from sppo_ray.rollout.weight_digest import flat_digest


def test_spans_by_hand() -> None:
    # float32: 2 x 3 numbers are 24 bytes, a vector of 4 is 16, a scalar is 4.
    found = spans(["a", "b", "c"], [(2, 3), (4,), ()], [0, 24, 40], "float32", 44)
    assert found == {"a": (0, 24), "b": (24, 40), "c": (40, 44)}


@pytest.mark.parametrize(
    ("names", "shapes", "offsets", "dtype", "num_bytes", "message"),
    [
        (["a", "a"], [(1,), (1,)], [0, 4], "float32", 8, "named more than once: a"),
        (["a", "b"], [(1,)], [0, 4], "float32", 8, "2 names, 1 shapes and 2 offsets"),
        (["a"], [(1,)], [0], "int8", 1, "dtype 'int8' is none of float32, bfloat16, float16"),
        (["a"], [(2,)], [4], "float32", 8, "a: bytes 4 to 12 do not lie aligned in a buffer of 8 bytes"),
        (["a"], [(1,)], [3], "bfloat16", 8, "bytes 3 to 5"),
        (["a"], [(1,)], [-4], "float32", 8, "bytes -4 to 0"),
        (["a", "b"], [(2,), (1,)], [0, 4], "float32", 8, "a and b overlap"),
    ],
)
def test_impossible_layouts_are_refused(
    names: list[str],
    shapes: list[tuple[int, ...]],
    offsets: list[int],
    dtype: str,
    num_bytes: int,
    message: str,
) -> None:
    with pytest.raises(WeightsRefused, match=message):
        spans(names, shapes, offsets, dtype, num_bytes)


@given(
    st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=8),
    st.sampled_from(["float32", "bfloat16"]),
)
def test_any_packed_layout_covers_its_buffer(shapes: list[list[int]], dtype: str) -> None:
    item = {"float32": 4, "bfloat16": 2}[dtype]
    sizes = [math.prod(shape) * item for shape in shapes]
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    names = [f"p{i}" for i in range(len(sizes))]
    found = spans(names, shapes, offsets, dtype, sum(sizes))
    assert [end - start for start, end in found.values()] == sizes
    with pytest.raises(WeightsRefused):
        spans(names, shapes, offsets, dtype, sum(sizes) - 1)


def test_what_is_sent_must_be_exactly_the_models_parameters() -> None:
    expected = {"embed": (8, 4), "layers.0.q": (4, 4), "layers.0.k": (2, 4), "norm": (4,)}
    names, shapes = list(expected), list(expected.values())
    require_complete(names, shapes, expected)
    require_complete(names[::-1], shapes[::-1], expected)
    with pytest.raises(WeightsRefused, match="1 of the model's 4 parameters are missing: norm"):
        require_complete(names[:3], shapes[:3], expected)
    with pytest.raises(
        WeightsRefused, match="4 of the model's 4 parameters are missing: embed, layers.0.q, layers.0.k, ..."
    ):
        require_complete([], [], expected)
    with pytest.raises(WeightsRefused, match="1 names are no parameter of the model: lm_head"):
        require_complete([*names, "lm_head"], [*shapes, (8, 4)], expected)
    with pytest.raises(WeightsRefused, match=r"layers.0.k has shape \(4, 2\), the model's is \(2, 4\)"):
        require_complete(names, [*shapes[:2], (4, 2), shapes[3]], expected)


def test_digest_is_of_bytes_and_sees_every_bit() -> None:
    numbers = np.arange(6, dtype=np.float32)
    assert flat_digest(numbers) == flat_digest(numbers.reshape(2, 3)) == flat_digest(numbers.view(np.uint8))
    # XXH3-128 of nothing, from the reference implementation.
    assert flat_digest(np.zeros(0, np.uint8)) == "99aa06d3014798d86001c324468d497f"
    seen = {flat_digest(numbers)}
    for bit in range(8):
        changed = numbers.view(np.uint8).copy()
        changed[17] ^= 1 << bit
        seen.add(flat_digest(changed))
    assert len(seen) == 9
    with pytest.raises(ValueError, match="C-contiguous"):
        flat_digest(numbers.reshape(2, 3).T)
