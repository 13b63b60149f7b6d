"""The section `algorithm`: the settings of one of `ALGORITHMS`, chosen by its `type`."""

from __future__ import annotations

from typing import Annotated, Union

from pydantic import Field

from sppo_ray.algorithms import ALGORITHMS
from sppo_ray.algorithms.base import AlgorithmSpec

Algorithm = Annotated[
    Union[tuple(spec.settings for spec in ALGORITHMS.values())], Field(discriminator="type")
]  # type: ignore[valid-type]


def spec_of(algorithm: Algorithm) -> AlgorithmSpec:
    return ALGORITHMS[algorithm.type]


def critic_needs_probabilities(algorithm: Algorithm) -> bool:
    """Whether its critic is trained by binary cross-entropy, which needs rewards in [0, 1]."""
    return spec_of(algorithm).critic == "prompt" or algorithm.token_critic_loss == "bce"


def needs_unit_rewards(algorithm: Algorithm) -> bool:
    """Whether rewards have to lie in [0, 1]: for cross-entropy, or for a tracker's success
    rates.
    """
    return critic_needs_probabilities(algorithm) or algorithm.tracked is not None
