"""What is kept of each cell and each run, on the disk from the moment it is known."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sppo_ray.rundir.jsonlines import write_atomically
from tests.chaos.record import Audit


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """One fault and what became of it."""

    name: str
    heal_s: float  # from the fault until every worker served again and a step was finished
    cost: Audit
    resumes: int  # how often the trainer had to be started again with --resume
    problem: str | None  # why it does not count as healed
    run: str

    @property
    def is_good(self) -> bool:
        return self.problem is None and self.cost.is_clean

    @property
    def verdict(self) -> str:
        if self.problem is not None:
            return f"NOT HEALED: {self.problem}"
        return f"--resume ({self.resumes})" if self.resumes else "itself"


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A run that took several faults, from its first step to its clean end."""

    name: str
    cells: list[str]
    steps: int
    resumes: int
    cost: Audit
    compared_steps: int  # with the undisturbed run; 0 for an overlapped run
    difference: str | None  # the first, None = equal to the bit
    faults: list[str] = field(default_factory=list)  # of its end: exit code, orphans

    @property
    def is_good(self) -> bool:
        return self.cost.is_clean and self.difference is None and not self.faults


class Ledger:
    """The outcomes so far, in a JSON file that is rewritten with each of them. Several harnesses
    may share it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.on_cell: Callable[[CellOutcome], None] = lambda outcome: None
        self.cells: list[CellOutcome] = []
        self.runs: list[RunOutcome] = []
        self._read()

    def add(self, outcome: CellOutcome) -> None:
        """A later outcome of a cell replaces the one before."""
        with self.lock():
            self._read()
            self.cells = [known for known in self.cells if known.name != outcome.name] + [outcome]
            self._write()
        self.on_cell(outcome)

    def add_run(self, outcome: RunOutcome) -> None:
        with self.lock():
            self._read()
            self.runs.append(outcome)
            self._write()

    @property
    def good(self) -> set[str]:
        """Names of the cells that need not be run again."""
        return {outcome.name for outcome in self.cells if outcome.is_good}

    @contextmanager
    def lock(self, what: str = "cells") -> Iterator[None]:
        """Keep the other harnesses out for the length of the block."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(f"{what}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read(self) -> None:
        if self._path.exists():
            content = json.loads(self._path.read_text())
            self.cells = [_cell(row) for row in content["cells"]]
            self.runs = [_run(row) for row in content["runs"]]

    def _write(self) -> None:
        content = {"cells": [asdict(cell) for cell in self.cells], "runs": [asdict(run) for run in self.runs]}
        write_atomically(self._path, json.dumps(content, indent=1) + "\n")


def _cell(row: dict[str, Any]) -> CellOutcome:
    return CellOutcome(**(row | {"cost": Audit(**row["cost"])}))


def _run(row: dict[str, Any]) -> RunOutcome:
    return RunOutcome(**(row | {"cost": Audit(**row["cost"])}))
