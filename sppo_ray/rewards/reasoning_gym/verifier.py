"""Verifier of reasoning-gym tasks: the task's own `score_answer`, on the entry that generated the
prompt.

A scorer that evaluates text gets only answers that match the grammar of its task (`evaluated`);
without a grammar the task is refused. An answer that makes the scorer fail is wrong if the entry's
own answer does not fail.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from sppo_ray.errors import UserError
from sppo_ray.rewards.base import BadGroundTruth, VerifierFunction
from sppo_ray.rewards.extract import last_boxed, last_tagged, without_thinking
from sppo_ray.rewards.reasoning_gym.evaluated import ANSWERS, ENTRIES
from sppo_ray.rewards.reasoning_gym.evaluators import evaluating
from sppo_ray.rewards.reasoning_gym.full_credit import deserves_full_credit, deserves_no_credit, is_own_answer

_REPEATED_TURN = re.compile("[0-9]{2}")
"""`U999999`: the scorer of rubiks_cube would turn as often, for half a minute."""


_TEXT = re.compile(r"\A\s*\\(?:text|mathrm|textbf|mathbf|textit)\s?\{([^{}]*)\}\s*\Z")


def make_reasoning_gym_verifier(*, full_only: bool) -> VerifierFunction:
    """A verifier that reads `extra["reasoning_gym_task"]` and `extra["reasoning_gym_entry"]` (the
    entry as JSON).

    `full_only` turns partial credit into 0. Raises UserError for a sample that carries no entry,
    and for a task whose scorer evaluates answers in a way that is not known here; BadGroundTruth
    for an entry that is none of its task.
    """

    def verify(response: str, ground_truth: str, extra: Mapping[str, Any]) -> tuple[float, str]:
        task, entry = _entry_of(extra)
        found = answer(response)
        if found is None:
            return 0.0, "no_answer"
        score = _score(task, entry, found)
        # also where the scorer refuses it: some compare lists of the entry, which travels as JSON,
        # with tuples
        if is_own_answer(found, entry) or (score == 1.0 and deserves_full_credit(task, found, entry)):
            return 1.0, "correct"
        # a score outside the range, such as nan, counts as 0
        if full_only or not 0.0 < score < 1.0 or deserves_no_credit(found, entry):
            return 0.0, "wrong"
        return score, "partial"

    return verify


def try_entry(ground_truth: str, extra: Mapping[str, Any]) -> None:
    """Score the entry's own answer. Raises what the scorer raises, and BadGroundTruth when it gives
    no number.
    """
    task, entry = _entry_of(extra)
    if not math.isfinite(_score(task, entry, str(entry["answer"]))):
        raise BadGroundTruth(f"reasoning-gym's {task} gives the entry's own answer no score")


def answer(response: str) -> str | None:
    """Return the last box, without a command around all of its text, else the last answer tag, else
    the whole response without its thinking; None when that is empty.
    """
    boxed = last_boxed(response)
    if boxed:
        return _TEXT.sub(r"\1", boxed).strip() or None
    return last_tagged(response) or without_thinking(response).strip() or None


def warm_up() -> None:
    """Score a right answer of each task with one process per sample, so that each process inherits
    the imports and caches.
    """
    for task in ANSWERS:
        if task in DATASETS:
            entry = reasoning_gym.create_dataset(task, size=1, seed=0)[0]
            _score_function(task)(answer=entry["answer"], entry=entry)


def _score(task: str, entry: dict[str, Any], found: str) -> float:
    score_answer = _score_function(task)
    if task in ENTRIES and not _is_entry(task, entry):
        raise BadGroundTruth(
            f"the entry is none of reasoning-gym's {task}: its scorer would evaluate text that is no formula"
        )
    if task == "rubiks_cube" and _REPEATED_TURN.search(found):
        return 0.0
    given = ANSWERS[task](found, entry) if task in ANSWERS else found
    return 0.0 if given is None else float(score_answer(answer=given, entry=entry))


def _is_entry(task: str, entry: dict[str, Any]) -> bool:
    try:
        return ENTRIES[task](entry)
    except (KeyError, TypeError, AttributeError):
        return False


def _entry_of(extra: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    try:
        task, text = extra["reasoning_gym_task"], extra["reasoning_gym_entry"]
    except KeyError as error:
        raise UserError(
            f"reward.function reasoning-gym needs {error} in the sample's extra, which only data sources of "
            "type "
            "reasoning-gym give: use another reward.function for this data"
        ) from None
    try:
        return task, json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise BadGroundTruth("reasoning_gym_entry in the sample's extra is no JSON") from None


@lru_cache(maxsize=128)
def _score_function(task: str) -> Any:
    try:
        dataset, _ = DATASETS[task]
    except KeyError:
        raise UserError(
            f"reasoning-gym has no task {task!r}: see reasoning_gym.factory.DATASETS for the names"
        ) from None
    if task not in ANSWERS and task not in ENTRIES and (calls := evaluating(dataset.score_answer, dataset)):
        raise UserError(
            f"reasoning-gym's scorer of {task!r} may run code out of an answer ({', '.join(sorted(calls))}), "
            "and sppo-ray "
            "knows no grammar for its answers: leave the task out, or use the release of reasoning-gym in "
            "requirements/"
        )
    return reasoning_gym.get_score_answer_fn(task)
