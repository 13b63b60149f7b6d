"""The section `algorithm`: the settings of one of `ALGORITHMS`, or of a plugin, chosen by its
`type`.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal, Union

from pydantic import Discriminator, SerializeAsAny

from sppo_ray import plugins
from sppo_ray.algorithms import ALGORITHMS
from sppo_ray.algorithms.base import AlgorithmSettings, AlgorithmSpec
from sppo_ray.config.plugin_types import declared_settings, or_plugin

_Own = Union[tuple(spec.settings for spec in ALGORITHMS.values())]  # type: ignore[valid-type]
Algorithm = Annotated[
    _Own,
    Discriminator("type"),
    SerializeAsAny(),
    or_plugin("algorithms", _Own, partial(declared_settings, "algorithms", base=AlgorithmSettings)),
]


def spec_of(algorithm: Algorithm) -> AlgorithmSpec:
    own = ALGORITHMS.get(algorithm.type)
    return plugins.load("algorithms", algorithm.type) if own is None else own


def needs_of(algorithm: Algorithm) -> Literal["sample", "group", "step"]:
    """Return the samples of a step that are needed before an advantage is known."""
    return "step" if algorithm.centers else spec_of(algorithm).needs


def critic_needs_probabilities(algorithm: Algorithm) -> bool:
    """Whether its critic is trained by binary cross-entropy, which needs rewards in [0, 1]."""
    return spec_of(algorithm).critic == "prompt" or algorithm.token_critic_loss == "bce"


def needs_unit_rewards(algorithm: Algorithm) -> bool:
    """Whether rewards have to lie in [0, 1]: for cross-entropy, or for a tracker's success
    rates.
    """
    return critic_needs_probabilities(algorithm) or algorithm.tracked is not None
