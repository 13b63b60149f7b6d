"""Selects prompts by the critic's value: prompts with an uncertain outcome are preferred.

    weight = max((4 V (1 - V)) ** sharpness, floor)        from floor (V = 0 or 1) to 1 (V = 1/2)

V (1 - V) is the variance of a 0/1 reward. With a calibrated critic it is also the variance of the
advantage, which is 0 for a prompt that is always or never solved. Prompts are drawn without
replacement, in proportion to their weights, by the exponential keys of Efraimidis and Spirakis
(Information Processing Letters 97, 2006).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WEIGHT_FLOOR = 1e-4
"""Default of `floor`. Every prompt can be drawn, so that a confident but wrong critic is
corrected.
"""


def choose(
    values: Sequence[float], count: int, *, sharpness: float, seed: int, floor: float = WEIGHT_FLOOR
) -> list[int]:
    """Draw `count` candidates and return their indices, ascending.

    The result depends only on the arguments.

    Args:
        values: the critic's value or the tracker's rate of each candidate, in [0, 1].

    Raises:
        ValueError: fewer candidates than `count`.
    """
    value = np.asarray(values, dtype=np.float64)
    if value.size < count:
        raise ValueError(f"cannot choose {count} prompts from {value.size} candidates")
    weights = np.maximum((4.0 * value * (1.0 - value)) ** sharpness, floor)
    keys = np.random.Generator(np.random.PCG64(seed)).exponential(size=value.size) / weights
    return sorted(np.argsort(keys, kind="stable")[:count].tolist())
