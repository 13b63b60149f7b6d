"""What the harness shows: a line a finished cell, and a bar with what is going on; plain lines
where there is no terminal.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tests.chaos.outcomes import CellOutcome


class Display:
    """Use it as a context manager."""

    def __init__(self, total: int) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        columns = (
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._progress.add_task("", total=total)
        self._console.print(
            f"{'cell':44} {'heal s':>7} {'lost':>5} {'repeated':>9} {'wrong version':>14}  healed by"
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._progress.update(self._task, description=text)
        if not self._console.is_terminal:
            self._console.print(f"  {time.strftime('%H:%M:%S')} {text}")

    def done(self, outcome: CellOutcome) -> None:
        cost = outcome.cost
        figures = f"{outcome.heal_s:7.1f} {cost.lost:5d} {cost.repeated:9d} {cost.wrong_version:14d}"
        self._console.print(f"{outcome.name:44} {figures}  {outcome.verdict}")
        self._progress.advance(self._task)
