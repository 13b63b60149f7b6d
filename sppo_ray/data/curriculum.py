"""A curriculum by solvability: prompts whose outcome is open teach most, and the critic knows them beforehand.

    weight = (4 V (1 - V)) ** sharpness        from 0 (settled) to 1 (V = 1/2)

V (1 - V) is the variance of a 0/1 reward, and so of the advantage that a well calibrated critic leaves: a prompt that is
always or never solved has none. Prompts are drawn without replacement by the exponential keys of Efraimidis and Spirakis
(Information Processing Letters 97, 2006), so that each kept one is drawn in proportion to its weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WEIGHT_FLOOR = 1e-4
"""Of the highest weight. No prompt is out of reach for ever: a critic that is sure and wrong would never hear of it."""


def choose(values: Sequence[float], count: int, *, sharpness: float, seed: int) -> list[int]:
    """Indices of `count` candidates, ascending, so that the order of the prompts stays that of the stream.

    Args:
        values: the critic's V of each candidate, in [0, 1].
        seed: decides the draw together with the values; nothing else does.

    Raises:
        ValueError: fewer candidates than `count`.
    """
    value = np.asarray(values, dtype=np.float64)
    if value.size < count:
        raise ValueError(f"{count} prompts are to be chosen from {value.size} candidates")
    weights = np.maximum((4.0 * value * (1.0 - value)) ** sharpness, WEIGHT_FLOOR)
    keys = np.random.Generator(np.random.PCG64(seed)).exponential(size=value.size) / weights
    return sorted(np.argsort(keys, kind="stable")[:count].tolist())
