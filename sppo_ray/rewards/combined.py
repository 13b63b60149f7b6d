"""Scorers that combine others: a weighted mean, a product, a choice by a field of the row.

All parts of a sample are scored at the same time. Their rewards are `Verdict.parts` by name, with
the parts of a part as NAME/PART, and become the metrics reward/NAME.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from sppo_ray.config import ProductReward, RoutedReward, SumReward
from sppo_ray.rewards.scorer import Scorer
from sppo_ray.types import ScoreRequest, Verdict

Verdicts = Mapping[str, Verdict]
"""Of one response, by the name of the part."""


class CombinedScorer:
    """Scores each response with all parts, and combines their verdicts."""

    def __init__(self, parts: Mapping[str, Scorer], combine: Callable[[Verdicts], Verdict]) -> None:
        self._parts = parts
        self._combine = combine

    async def ready(self) -> None:
        await asyncio.gather(*(part.ready() for part in self._parts.values()))

    async def score_all(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        scored = await asyncio.gather(*(part.score_all(requests) for part in self._parts.values()))
        return [self._combine(dict(zip(self._parts, row, strict=True))) for row in zip(*scored, strict=True)]

    def counts(self) -> Mapping[str, int]:
        return _counts(self._parts.values())

    async def close(self) -> None:
        await asyncio.gather(*(part.close() for part in self._parts.values()))


class RoutedScorer:
    """Scores each response with the route of its row."""

    def __init__(self, settings: RoutedReward, routes: Mapping[str, Scorer]) -> None:
        self._field = settings.field
        self._routes = routes
        self._name_of = {value: route.name for route in settings.routes for value in route.values}
        self._other = next((route.name for route in settings.routes if not route.values), None)

    async def ready(self) -> None:
        await asyncio.gather(*(route.ready() for route in self._routes.values()))

    async def score_all(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        names = [self._route_of(request) for request in requests]
        verdicts: list[Verdict] = [
            Verdict(None, f"error: no route for {self._field} {self._value(request)[:100]!r}", 0.0)
            for request in requests
        ]

        async def score(name: str, route: Scorer) -> None:
            own = [index for index, chosen in enumerate(names) if chosen == name]
            found = await route.score_all([requests[index] for index in own])
            for index, verdict in zip(own, found, strict=True):
                verdicts[index] = routed(name, verdict)

        await asyncio.gather(*(score(*route) for route in self._routes.items() if route[0] in names))
        return verdicts

    def counts(self) -> Mapping[str, int]:
        return _counts(self._routes.values())

    async def close(self) -> None:
        await asyncio.gather(*(route.close() for route in self._routes.values()))

    def _route_of(self, request: ScoreRequest) -> str | None:
        return self._name_of.get(self._value(request), self._other)

    def _value(self, request: ScoreRequest) -> str:
        own = {"data_source": request.source} if self._field == "data_source" else {}
        return str((own | dict(request.extra)).get(self._field, ""))


def weighted_mean(settings: SumReward) -> Callable[[Verdicts], Verdict]:
    """Return what combines the parts of a sum. A part of weight 0 that fails is left out."""
    weights = {part.name: part.weight for part in settings.parts if part.weight > 0}
    total = math.fsum(weights.values())
    low, high = settings.range

    def combine(verdicts: Verdicts) -> Verdict:
        for name in weights:
            if verdicts[name].is_error:
                return _error(name, verdicts)
        reward = math.fsum(weight * _reward(verdicts[name]) for name, weight in weights.items()) / total
        return _combined(min(high, max(low, reward)), verdicts, low, high)

    return combine


def product(settings: ProductReward) -> Callable[[Verdicts], Verdict]:
    """Return what combines the parts of a product. With a part that is 0 the product is 0, also
    where another part fails.
    """

    def combine(verdicts: Verdicts) -> Verdict:
        failed = [name for name, verdict in verdicts.items() if verdict.is_error]
        known = [_reward(verdict) for verdict in verdicts.values() if not verdict.is_error]
        if failed and 0.0 not in known:
            return _error(failed[0], verdicts)
        return _combined(math.prod(known), verdicts, 0.0, 1.0)

    return combine


def routed(name: str, verdict: Verdict) -> Verdict:
    """Return the verdict of a route, with its reward as the part of that name."""
    return Verdict(verdict.reward, verdict.reason, verdict.seconds, verdict.answer, _parts({name: verdict}))


def _reward(verdict: Verdict) -> float:
    assert verdict.reward is not None
    return verdict.reward


def _combined(reward: float, verdicts: Verdicts, low: float, high: float) -> Verdict:
    reason = "correct" if reward == high else "wrong" if reward == low else "partial"
    answers = (verdict.answer for verdict in verdicts.values())
    answer = next((answer for answer in answers if answer is not None), None)
    return Verdict(reward, reason, _seconds(verdicts), answer, _parts(verdicts))


def _error(name: str, verdicts: Verdicts) -> Verdict:
    reason = f"error: {name}: {verdicts[name].reason.removeprefix('error: ')}"
    return Verdict(None, reason, _seconds(verdicts), parts=_parts(verdicts))


def _parts(verdicts: Verdicts) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, verdict in verdicts.items():
        found |= {} if verdict.reward is None else {name: verdict.reward}
        found |= {f"{name}/{part}": figure for part, figure in verdict.parts.items()}
    return found


def _seconds(verdicts: Verdicts) -> float:
    return max(verdict.seconds for verdict in verdicts.values())


def _counts(scorers: Iterable[Scorer]) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for scorer in scorers:
        total.update(scorer.counts())
    return total
