"""Settings of the loss forms other than PPO's clip. The formulas are in `loss_forms`.

Bounds are ratios themselves, not distances from 1: other systems use one epsilon for both, and for
differences of probabilities (docs/algorithms.md).
"""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field

from sppo_ray.settings import Settings


class DISLoss(Settings):
    """Double-sided importance-sampling mask (SAO, arXiv 2607.07508): the gradient of a token is
    weighted by pi / pi_engine, and is 0 unless low < pi / pi_engine < high, whatever the sign of
    the advantage.
    """

    type: Literal["dis"] = "dis"
    low: Annotated[float, Field(ge=0, lt=1)] = 0.7
    """A token with this ratio or a lower one has no gradient."""
    high: Annotated[float, Field(gt=1)] = 6.0
    """A token with this ratio or a higher one has no gradient."""


class DPPOLoss(Settings):
    """DPPO with the binary total variation (arXiv 2602.04879): the gradient of a token is weighted
    by pi / pi_engine, and is 0 when the probability of the token has already moved by more than
    `divergence` in the direction of the advantage.
    """

    type: Literal["dppo"] = "dppo"
    divergence: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Largest |pi - pi_engine|, a difference of probabilities."""
    high: Annotated[float, Field(gt=1)] = 20.0
    """Cap of the weight pi / pi_engine."""


class CISPOLoss(Settings):
    """CISPO (arXiv 2506.13585): the gradient of a token is weighted by pi / pi_old, clipped to
    [low, high]. No token loses its gradient.
    """

    type: Literal["cispo"] = "cispo"
    low: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Lowest weight."""
    high: Annotated[float, Field(gt=1)] = 5.0
    """Highest weight."""


LossForm = Annotated[Union[DISLoss, DPPOLoss, CISPOLoss], Field(discriminator="type")]


class ImportanceMaskSettings(Settings):
    """Token-level mask of importance weights (IcePop)."""

    low: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Lowest pi_learner / pi_engine of a trained token."""
    high: Annotated[float, Field(gt=1)] = 5.0
    """Highest pi_learner / pi_engine of a trained token."""
