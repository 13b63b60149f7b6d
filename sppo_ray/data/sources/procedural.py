"""Sources that make their examples on demand from (seed, row): nothing is stored, any row is reached at once."""

from __future__ import annotations

import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from sppo_ray.config import ReasoningGymData, RunningSumData
from sppo_ray.errors import UserError
from sppo_ray.types import Example


class _ProceduralSource(ABC):
    """Rows 0 to settings.size - 1 of what `_generate` makes."""

    procedural = True

    def __init__(self, settings: RunningSumData | ReasoningGymData, name: str) -> None:
        self.name = name
        self._size = settings.size
        self._label = settings.name

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, row: int) -> Example:
        if not 0 <= row < len(self):
            raise IndexError(f"{self.name}: rows run from 0 to {len(self) - 1}")
        text, truth, extra = self._generate(row)
        messages = ({"role": "user", "content": text},)
        return Example(id=f"{self.name}/{row}", source=self._label, messages=messages, ground_truth=truth, extra=extra)

    def examples(self, rows: Sequence[int]) -> list[Example]:
        return [self[row] for row in rows]

    @abstractmethod
    def _generate(self, row: int) -> tuple[str, str, dict[str, str]]:
        """(prompt, ground truth, extra) of a row."""


class RunningSumSource(_ProceduralSource):
    """The package's own task; see `sppo_ray.tasks.running_sum`."""

    def __init__(self, settings: RunningSumData, name: str) -> None:
        super().__init__(settings, name)
        self._settings = settings

    def _generate(self, row: int) -> tuple[str, str, dict[str, str]]:
        from sppo_ray.tasks.running_sum import generate_example

        text, truth = generate_example(row, seed=self._settings.seed, max_operands=self._settings.max_operands)
        return text, truth, {}


class ReasoningGymSource(_ProceduralSource):
    """A task of the reasoning-gym package.

    The task's verifier wants the whole entry back, so it travels in `extra` as JSON: keys `reasoning_gym_task` and
    `reasoning_gym_entry` (question, answer, metadata; tuples become lists). Some tasks have no single right answer:
    their ground truth reads "None" and only the entry's verifier can judge.
    """

    def __init__(self, dataset: Any, settings: ReasoningGymData, name: str) -> None:
        super().__init__(settings, name)
        self._dataset = dataset  # reasoning_gym.dataset.ProceduralDataset
        self._task = settings.task

    def _generate(self, row: int) -> tuple[str, str, dict[str, str]]:
        entry = self._dataset[row]
        extra = {"reasoning_gym_task": self._task, "reasoning_gym_entry": json.dumps(entry)}
        return entry["question"], str(entry["answer"]), extra


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
