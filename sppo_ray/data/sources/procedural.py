"""Sources that make their examples on demand from (seed, row): nothing is stored, any row is reached at once."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any

from sppo_ray.config import ReasoningGymData, RunningSumData
from sppo_ray.errors import UserError
from sppo_ray.types import Example


class RunningSumSource:
    """The package's own task; see `sppo_ray.tasks.running_sum`."""

    procedural = True

    def __init__(self, settings: RunningSumData, name: str) -> None:
        self.name = name
        self._settings = settings

    def __len__(self) -> int:
        return self._settings.size

    def __getitem__(self, row: int) -> Example:
        return self.examples([row])[0]

    def examples(self, rows: Sequence[int]) -> list[Example]:
        return [self._generate(row) for row in rows]

    def _generate(self, row: int) -> Example:
        from sppo_ray.tasks.running_sum import generate_example

        _check_row(self, row)
        text, truth = generate_example(row, seed=self._settings.seed, max_operands=self._settings.max_operands)
        return _user_example(f"{self.name}/{row}", self._settings.name, text, truth, {})


class ReasoningGymSource:
    """A task of the reasoning-gym package.

    The task's verifier wants the whole entry back, so it travels in `extra` as JSON: keys `reasoning_gym_task` and
    `reasoning_gym_entry` (question, answer, metadata; tuples become lists). Some tasks have no single right answer:
    their ground truth reads "None" and only the entry's verifier can judge.
    """

    procedural = True

    def __init__(self, dataset: Any, settings: ReasoningGymData, name: str) -> None:
        self.name = name
        self._dataset = dataset  # reasoning_gym.dataset.ProceduralDataset
        self._settings = settings

    def __len__(self) -> int:
        return self._settings.size

    def __getitem__(self, row: int) -> Example:
        return self.examples([row])[0]

    def examples(self, rows: Sequence[int]) -> list[Example]:
        return [self._generate(row) for row in rows]

    def _generate(self, row: int) -> Example:
        _check_row(self, row)
        entry = self._dataset[row]
        extra = {"reasoning_gym_task": self._settings.task, "reasoning_gym_entry": json.dumps(entry)}
        return _user_example(f"{self.name}/{row}", self._settings.name, entry["question"], str(entry["answer"]), extra)


def open_running_sum(settings: RunningSumData, name: str, where: str) -> RunningSumSource:
    return RunningSumSource(settings, name)


def open_reasoning_gym(settings: ReasoningGymData, name: str, where: str) -> ReasoningGymSource:
    """Raises UserError for a task that does not exist and for options that the task refuses."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise UserError(f"{where}: the package reasoning-gym is not installed: pip install reasoning-gym") from None
    if settings.task not in DATASETS:
        close = difflib.get_close_matches(settings.task, DATASETS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {len(DATASETS)}, e.g. {', '.join(sorted(DATASETS)[:5])}"
        raise UserError(f"{where}.task: reasoning-gym has no task {settings.task!r}; {hint}")
    reserved = {"size", "seed"} & set(settings.options)
    if reserved:
        raise UserError(f"{where}.options: {', '.join(sorted(reserved))} is a setting of its own: move it one level up")
    try:
        dataset = reasoning_gym.create_dataset(settings.task, size=settings.size, seed=settings.seed, **settings.options)
    except (TypeError, ValueError, AssertionError, KeyError) as error:  # how the tasks' own checks refuse an option
        raise UserError(f"{where}.options: reasoning-gym refuses them for {settings.task}: {error}") from None
    return ReasoningGymSource(dataset, settings, name)


def _user_example(example_id: str, source: str, text: str, truth: str, extra: dict[str, str]) -> Example:
    return Example(id=example_id, source=source, messages=({"role": "user", "content": text},), ground_truth=truth, extra=extra)


def _check_row(source: RunningSumSource | ReasoningGymSource, row: int) -> None:
    if not 0 <= row < len(source):
        raise IndexError(f"{source.name}: rows run from 0 to {len(source) - 1}")
