"""What the tests of `math` ask: the reward of an answer in a box, and of several answers."""

from __future__ import annotations

from sppo_ray.rewards.math import verify_math


def reward(answer: str, truth: str, prompt: str = "") -> float:
    return verify_math(f"so \\boxed{{{answer}}}", truth, {"prompt": prompt})[0]


def same(truth: str, *answers: str) -> None:
    assert {answer: reward(answer, truth) for answer in answers} == dict.fromkeys(answers, 1.0)


def different(truth: str, *answers: str) -> None:
    assert {answer: reward(answer, truth) for answer in answers} == dict.fromkeys(answers, 0.0)
