"""Sums, products and routes: rewards by hand, errors, names of parts, permissions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from pydantic import TypeAdapter

from sppo_ray.config import RewardFunction, RewardSettings
from sppo_ray.config.loading import load_config
from sppo_ray.config.permissions import asks_for
from sppo_ray.errors import UserError
from sppo_ray.rewards.build import build_scorer
from sppo_ray.rewards.combined import CombinedScorer, RoutedScorer, product, weighted_mean
from sppo_ray.types import ScoreRequest, Verdict

MATH = {"type": "math"}
LAST = {"type": "custom", "function": "sppo_ray.rewards.last_number:reward"}
RAW = {"type": "model", "model": "m"}


def function(**tree: Any) -> Any:
    return TypeAdapter(RewardFunction).validate_python(tree)


def settings(**tree: Any) -> RewardSettings:
    return RewardSettings(function=function(**tree))


def verdict(reward: float | None, **parts: float) -> Verdict:
    return Verdict(reward, "x" if reward is not None else "error: timeout", 0.5, parts=parts)


def request(source: str = "", **extra: Any) -> ScoreRequest:
    return ScoreRequest("r", "", source, "", extra)


class FakeScorer:
    """FAKE part: gives the same verdict to all and notes what it was asked."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict, self.asked = verdict, 0

    async def ready(self) -> None: ...

    async def close(self) -> None: ...

    async def score_all(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        self.asked += len(requests)
        return [self.verdict] * len(requests)

    def counts(self) -> Mapping[str, int]:
        return {"scored": self.asked}


def test_a_sum_is_the_mean_by_weights() -> None:
    parts = [
        {"name": "answer", "weight": 3, "function": MATH},
        {"name": "style", "weight": 1, "function": MATH},
        {"name": "other", "weight": 0, "function": RAW},
    ]
    combine = weighted_mean(function(type="sum", parts=parts))
    found = combine({"answer": verdict(1.0), "style": verdict(0.2, score=-7.0), "other": verdict(-9.0)})
    # (3 x 1 + 1 x 0.2) / 4
    assert found.reward == pytest.approx(0.8) and found.reason == "partial"
    assert found.parts == {"answer": 1.0, "style": 0.2, "style/score": -7.0, "other": -9.0}
    one = combine({"answer": verdict(1.0), "style": verdict(1.0), "other": verdict(None)})
    assert (one.reward, one.reason, one.parts) == (1.0, "correct", {"answer": 1.0, "style": 1.0})
    lost = combine({"answer": verdict(1.0), "style": verdict(None), "other": verdict(0.0)})
    assert (lost.reward, lost.reason) == (None, "error: style: timeout")


def test_a_product_is_a_gate() -> None:
    parts = [{"name": "format", "function": MATH}, {"name": "answer", "function": MATH}]
    combine = product(function(type="product", parts=parts))

    def reward(shape: float | None, answer: float | None) -> float | None:
        return combine({"format": verdict(shape), "answer": verdict(answer)}).reward

    assert [reward(1.0, 1.0), reward(0.0, 1.0), reward(1.0, 0.25)] == [1.0, 0.0, 0.25]
    # 0 whatever the other part is; else the sample is an error
    assert [reward(0.0, None), reward(None, 0.0), reward(1.0, None)] == [0.0, 0.0, None]


def test_parts_are_scored_together_and_counted() -> None:
    parts = {"a": FakeScorer(verdict(0.5)), "b": FakeScorer(verdict(1.0))}
    names = [{"name": name, "function": MATH} for name in parts]
    scorer = CombinedScorer(parts, product(function(type="product", parts=names)))
    assert [one.reward for one in asyncio.run(scorer.score_all([request()] * 3))] == [0.5] * 3
    assert scorer.counts() == {"scored": 6}


def test_rows_go_to_their_route() -> None:
    routes = [
        {"name": "maths", "values": ["gsm8k", "aime"], "function": MATH},
        {"name": "chat", "values": [], "function": MATH},
    ]
    fakes = {"maths": FakeScorer(verdict(1.0)), "chat": FakeScorer(verdict(0.25, score=3.0))}
    scorer = RoutedScorer(function(type="by-source", routes=routes), fakes)
    requests = [request("aime"), request("other"), request("x", data_source="gsm8k")]
    found = asyncio.run(scorer.score_all(requests))
    assert [one.reward for one in found] == [1.0, 0.25, 1.0]
    assert [one.parts for one in found] == [{"maths": 1.0}, {"chat": 0.25, "chat/score": 3.0}, {"maths": 1.0}]
    by_kind = function(type="by-source", field="kind", routes=[routes[0] | {"values": ["7"]}])
    lost, right = asyncio.run(
        RoutedScorer(by_kind, {"maths": fakes["maths"]}).score_all([request(), request(kind=7)])
    )
    assert (lost.reward, lost.reason) == (None, "error: no route for kind ''") and right.reward == 1.0


def test_real_verifiers_in_a_gate() -> None:
    """`math` needs a box, and `last_number` reads the last number."""
    parts = [{"name": "boxed", "function": MATH}, {"name": "last", "function": LAST}]
    gate = {"type": "product", "parts": parts}
    routes = [{"name": "sums", "values": ["sum"], "function": gate}, {"name": "rest", "function": MATH}]

    async def ask(*_: Any) -> list[float | str]:
        raise AssertionError("no model")

    async def score() -> list[Verdict]:
        scorer = build_scorer(settings(type="by-source", routes=routes), ask, {})
        try:
            await scorer.ready()
            texts = [("sum", r"\boxed{4}"), ("sum", r"\boxed{4} of 5"), ("", r"\boxed{4} of 5")]
            return await scorer.score_all([ScoreRequest(text, "4", source, "", {}) for source, text in texts])
        finally:
            await scorer.close()

    right, wrong, boxed = asyncio.run(score())
    assert right.parts == {"sums": 1.0, "sums/boxed": 1.0, "sums/last": 1.0} and right.answer == "4"
    assert wrong.reward == 0.0 and wrong.parts["sums/last"] == 0.0
    assert (boxed.reward, boxed.parts) == (1.0, {"rest": 1.0})


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ("{type: sum, parts: []}", "parts is empty"),
        ("{type: sum, parts: [{name: a, weight: 0, function: {type: math}}]}", "all weights are 0"),
        (
            "{type: product, parts: [{name: a, function: {type: math}}, {name: a, function: {type: math}}]}",
            "the name a is there twice",
        ),
        ("{type: product, parts: [{name: std, function: {type: math}}]}", "std is a metric of every run"),
        (
            "{type: product, parts: [{name: a, function: {type: model, model: m}}]}",
            r"part a has rewards in \[-inf, inf\].*give a reward model a transform",
        ),
        (
            "{type: sum, parts: [{name: a, function: {type: model, model: m}}]}",
            "score of reward model m has no limits",
        ),
        (
            "{type: by-source, routes: [{name: a, function: {type: math}}, "
            "{name: b, function: {type: math}}]}",
            "two routes take all other rows",
        ),
        ("{type: sum, parts: [{name: a, function: {type: sum, parts: []}}]}", "there is no 'sum'"),
        (
            "{type: sum, parts: [{name: a, function: {type: code, timeout_s: 10}}]}",
            "function.parts.0.function.timeout_s is 10 and deadline_s 10",
        ),
    ],
)
def test_impossible_combinations_are_refused(tree: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config("quickstart", [f"--reward.function={tree}"])


def test_code_inside_a_combination_asks_for_its_permission() -> None:
    free = {"type": "custom", "function": "evil.code:f", "confined": False}
    judge = {"type": "judge", "url": "http://judge.test:8000/v1/", "model": "m", "rubric": "{response}"}
    inner = {"type": "sum", "parts": [{"name": "a", "function": free}]}
    routes = [
        {"name": "a", "function": {"type": "product", "parts": [{"name": "b", "function": inner}]}},
        {"name": "c", "values": ["x"], "function": judge},
    ]
    asked = [(one.kind, one.name, one.setting) for one in asks_for(settings(type="by-source", routes=routes))]
    place = "reward.function.routes.0.function.parts.0.function.parts.0.function"
    assert asked == [
        ("module", "evil.code", f"{place}.function"),
        ("unconfined", "evil.code", f"{place}.confined"),
        ("network", "judge.test:8000", "reward.function.routes.1.function.url"),
    ]
