"""Verifier of reasoning-gym tasks: the task's own `score_answer`, on the entry that generated the prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import reasoning_gym

from sppo_ray.errors import UserError
from sppo_ray.rewards.base import VerifierFunction
from sppo_ray.rewards.extract import last_boxed, last_tagged


def make_reasoning_gym_verifier(*, full_only: bool) -> VerifierFunction:
    """A verifier that reads `extra["reasoning_gym_task"]` and `extra["reasoning_gym_entry"]` (the entry as JSON).

    `full_only` turns partial credit into 0. Raises UserError for a sample that carries no entry.
    """

    def verify(response: str, ground_truth: str, extra: Mapping[str, Any]) -> tuple[float, str]:
        task, entry = _entry_of(extra)
        found = answer(response)
        if found is None:
            return 0.0, "no_answer"
        score = float(_score_function(task)(answer=found, entry=entry))
        if score == 1.0:
            return 1.0, "correct"
        if full_only and 0.0 <= score < 1.0:
            return 0.0, "wrong"
        return score, "partial" if score else "wrong"

    return verify


def answer(response: str) -> str | None:
    """The last box, else the last answer tag, else the whole response; None when that is empty."""
    return last_boxed(response) or last_tagged(response) or response.strip() or None


def _entry_of(extra: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    try:
        return extra["reasoning_gym_task"], json.loads(extra["reasoning_gym_entry"])
    except KeyError as error:
        raise UserError(
            f"reward.function reasoning-gym needs {error} in the sample's extra, which only data sources of type "
            "reasoning-gym give: use another reward.function for this data"
        ) from None


@lru_cache(maxsize=128)
def _score_function(task: str) -> Any:
    try:
        return reasoning_gym.get_score_answer_fn(task)
    except ValueError:
        raise UserError(f"reasoning-gym has no task {task!r}: see reasoning_gym.factory.DATASETS for the names") from None
