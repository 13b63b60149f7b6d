"""Checks the layout of a version of the weights in its flat buffer, before an engine loads it.

byte 0                offsets[1]                         num_bytes
  |-- names[0] ---------|-- names[1] --| ... |-- names[-1] --|      parameter i: shapes[i] of
                                                                    `dtype`, C order
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

ITEM_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
NAMES_SHOWN = 3


class WeightsRefused(ValueError):
    """An update was refused before it changed the model. The engine still serves its old
    version.
    """


def spans(
    names: Sequence[str], shapes: Sequence[Sequence[int]], offsets: Sequence[int], dtype: str, num_bytes: int
) -> dict[str, tuple[int, int]]:
    """Return [start, end) in bytes of each parameter. Raises WeightsRefused unless names are unique
    and ranges are aligned, disjoint and within the buffer.
    """
    if not len(names) == len(shapes) == len(offsets):
        raise WeightsRefused(
            f"{len(names)} names, {len(shapes)} shapes and {len(offsets)} offsets: they must be equally many"
        )
    if dtype not in ITEM_BYTES:
        raise WeightsRefused(f"dtype {dtype!r} is none of {', '.join(ITEM_BYTES)}")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise WeightsRefused(f"named more than once: {_some(repeated)}")
    item = ITEM_BYTES[dtype]
    found: dict[str, tuple[int, int]] = {}
    for name, shape, offset in zip(names, shapes, offsets, strict=True):
        end = offset + math.prod(shape) * item
        if offset < 0 or offset % item or end > num_bytes:
            raise WeightsRefused(
                f"{name}: bytes {offset} to {end} do not lie aligned in a buffer of {num_bytes} bytes"
            )
        found[name] = (offset, end)
    _require_disjoint(found)
    return found


def require_complete(
    names: Sequence[str], shapes: Sequence[Sequence[int]], expected: Mapping[str, Sequence[int]]
) -> None:
    """Raise WeightsRefused unless `names` and `shapes` equal those of the policy, `expected`."""
    given = dict(zip(names, shapes, strict=True))
    if missing := [name for name in expected if name not in given]:
        raise WeightsRefused(
            f"{len(missing)} of the model's {len(expected)} parameters are missing: {_some(missing)}"
        )
    if unknown := [name for name in given if name not in expected]:
        raise WeightsRefused(f"{len(unknown)} names are no parameter of the model: {_some(unknown)}")
    for name, shape in given.items():
        if tuple(shape) != tuple(expected[name]):
            raise WeightsRefused(f"{name} has shape {tuple(shape)}, the model's is {tuple(expected[name])}")


def _require_disjoint(found: Mapping[str, tuple[int, int]]) -> None:
    ordered = sorted(found.items(), key=lambda entry: entry[1])
    for (name, (_, end)), (following, (start, _)) in zip(ordered, ordered[1:], strict=False):
        if start < end:
            raise WeightsRefused(f"{name} and {following} overlap in the buffer")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown}, ..."
