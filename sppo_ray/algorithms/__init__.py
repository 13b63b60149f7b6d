"""What tells one algorithm from another, chosen by the config's `algorithm.type` from a literal dict.

An algorithm is a way to turn rewards and values into advantages; the losses (`policy_loss`, `value_loss`) are shared.
To add one: a file with its formula and `advantages`, and a line in ALGORITHMS. This package imports no torch, so that
the driver and the command line stay light; the loss modules do and are imported by the actors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sppo_ray.algorithms import sppo


@dataclass(frozen=True, slots=True)
class AlgorithmSpec:
    """How one algorithm makes its advantages.

    `advantages(rewards, values)` maps the rewards and values of any number of samples, in any order and any split, to one
    advantage a sample.
    """

    advantages: Callable[[Sequence[float], Sequence[float]], list[float]]


ALGORITHMS: Mapping[str, AlgorithmSpec] = {
    "sppo": AlgorithmSpec(advantages=sppo.advantages),
}
