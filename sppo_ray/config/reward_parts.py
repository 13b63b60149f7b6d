"""Reward functions that combine others: a weighted mean, a product, a choice by a field of the row.

    by-source --routes--> product --parts--> sum --parts--> functions of one kind

Each may consist of those to its right, so a combination has at most three levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import Field, field_validator, model_validator

from sppo_ray.config.reward_models import JudgeReward, ModelReward
from sppo_ray.config.verifiers import (
    CodeReward,
    CustomReward,
    MathReward,
    PickledReward,
    ReasoningGymReward,
    RunningSumReward,
)
from sppo_ray.settings import Settings

RESERVED = ("mean", "std", "errors", "score", "watched", "seconds_mean", "seconds_max")
"""Metrics reward/NAME that are no parts."""
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")]

Leaf = Union[
    MathReward,
    RunningSumReward,
    ReasoningGymReward,
    CodeReward,
    CustomReward,
    PickledReward,
    ModelReward,
    JudgeReward,
]
LeafReward = Annotated[Leaf, Field(discriminator="type")]


class WeightedPart(Settings):
    """A part of a sum."""

    name: Name
    """Its metric is reward/NAME."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Its share in the reward, divided by the sum of all weights. 0 = it is only measured."""
    function: LeafReward


class SumReward(Settings):
    """The mean of several rewards by their weights."""

    type: Literal["sum"] = "sum"
    parts: tuple[WeightedPart, ...]

    @model_validator(mode="after")
    def _weighs(self) -> SumReward:
        require_names(self.parts, "parts")
        if not any(part.weight for part in self.parts):
            raise ValueError("all weights are 0, so there is no reward: give one part a weight, e.g. 1")
        return self

    @property
    def range(self) -> tuple[float, float]:
        weighed = [(part.weight, part.function.range) for part in self.parts if part.weight > 0]
        total = sum(weight for weight, _ in weighed)
        low, high = (sum(weight * ends[i] for weight, ends in weighed) / total for i in (0, 1))
        return low, high


class GatePart(Settings):
    """A part of a product."""

    name: Name
    """Its metric is reward/NAME."""
    function: Annotated[Union[LeafReward, SumReward], Field(discriminator="type")]


class ProductReward(Settings):
    """The product of several rewards: with a part that is 0 or 1, e.g. a check of the format, that
    part decides whether the others count.
    """

    type: Literal["product"] = "product"
    parts: tuple[GatePart, ...]

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @field_validator("parts")
    @classmethod
    def _between_0_and_1(cls, given: tuple[GatePart, ...]) -> tuple[GatePart, ...]:
        require_names(given, "parts")
        for part in given:
            low, high = part.function.range
            if low < 0 or high > 1:
                raise ValueError(
                    f"part {part.name} has rewards in [{low:g}, {high:g}], and a product needs those of all "
                    "parts in [0, 1]: give a reward model a transform, or rescale the function"
                )
        return given


class Route(Settings):
    """A reward function for some of the rows."""

    name: Name
    """Its metric is reward/NAME, over its rows."""
    values: tuple[str, ...] = ()
    """Values of the field; empty = all that no other route names."""
    function: Annotated[Union[LeafReward, SumReward, ProductReward], Field(discriminator="type")]


class RoutedReward(Settings):
    """A reward function for each kind of rows, by a field of the row. A row that no route names is
    a reward error.
    """

    type: Literal["by-source"] = "by-source"
    field: str = "data_source"
    """`data_source`, or a field of the row's `extra_info`."""
    routes: tuple[Route, ...]

    @model_validator(mode="after")
    def _one_route_a_value(self) -> RoutedReward:
        require_names(self.routes, "routes")
        values = [value for route in self.routes for value in route.values or ("",)]
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(
                f"two routes take {twice[0] or 'all other rows'}: name each value once, and leave values "
                "empty in one route at most"
            )
        return self

    @property
    def range(self) -> tuple[float, float]:
        lows, highs = zip(*(route.function.range for route in self.routes), strict=True)
        return min(lows), max(highs)


def require_names(parts: Sequence[Any], what: str) -> None:
    """Raise ValueError for no parts, and for names that repeat or belong to other metrics."""
    names = [part.name for part in parts]
    if not names:
        raise ValueError(f"{what} is empty: name at least one")
    if wrong := [name for name in names if names.count(name) > 1 or name in RESERVED]:
        why = "is a metric of every run" if wrong[0] in RESERVED else "is there twice"
        raise ValueError(f"{what}: the name {wrong[0]} {why}: choose another")


def leaves(function: Any, path: str = "reward.function") -> Iterator[tuple[str, Any]]:
    """Yield the functions of one kind in a reward function, each with the path of its settings."""
    kind = "routes" if isinstance(function, RoutedReward) else "parts"
    parts = getattr(function, kind) if isinstance(function, COMBINATIONS) else None
    if parts is None:
        yield path, function
        return
    for number, part in enumerate(parts):
        yield from leaves(part.function, f"{path}.{kind}.{number}.function")


def watched(function: Any, prefix: str = "") -> Iterator[str]:
    """Yield the metrics, without reward/, of the parts of weight 0."""
    if not isinstance(function, COMBINATIONS):
        return
    for part in function.routes if isinstance(function, RoutedReward) else function.parts:
        name = f"{prefix}{part.name}"
        if isinstance(part, WeightedPart) and part.weight == 0:
            yield name
        yield from watched(part.function, f"{name}/")


COMBINATIONS = (SumReward, ProductReward, RoutedReward)
