"""Show the progress of `sppo-ray eval`: a bar in a terminal, a line every few seconds in a log."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from sppo_ray.formatting import format_fraction, format_seconds, is_unicode, printable

PLAIN_EVERY_S = 10.0


class EvaluationProgress(Protocol):
    """Follows one evaluation. `close` must be called, to restore the terminal; it may be called
    twice.
    """

    def message(self, text: str) -> None: ...

    def start(self, total: int) -> None:
        """Start with the expected number of responses."""
        ...

    def advance(self, reward: float | None, num_tokens: int) -> None:
        """Count one graded response."""
        ...

    def close(self) -> None: ...


def make_evaluation_progress(stream: TextIO) -> EvaluationProgress:
    """Return a bar on a terminal, lines elsewhere."""
    if stream.isatty() and is_unicode(stream) and os.environ.get("TERM") != "dumb":
        return BarProgress(stream)
    return LineProgress(stream)


class _Tally:
    """Counts graded responses."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.total = self.done = self.tokens = self.errors = 0
        self._rewards = 0.0
        self._started = now()

    def start(self, total: int) -> None:
        self.total, self._started = total, self._now()

    def add(self, reward: float | None, num_tokens: int) -> None:
        self.done += 1
        self.tokens += num_tokens
        self.errors += reward is None
        self._rewards += reward or 0.0

    @property
    def elapsed(self) -> float:
        return self._now() - self._started

    def text(self) -> str:
        graded = self.done - self.errors
        average = self._rewards / graded if graded else float("nan")
        speed = self.tokens / self.elapsed if self.elapsed > 0 else 0.0
        errors = f"  reward errors {self.errors}" if self.errors else ""
        return f"avg {format_fraction(average)}  {speed:.0f} tok/s{errors}"


class LineProgress:
    """graded  512/2048  avg 0.43  812 tok/s  ETA 1m20s, every 10 s and at the end."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._now = stream, now
        self._tally = _Tally(now)
        self._told_at = now()

    def message(self, text: str) -> None:
        print(printable(text, self._stream), file=self._stream, flush=True)

    def start(self, total: int) -> None:
        self._tally.start(total)
        self._told_at = self._now()

    def advance(self, reward: float | None, num_tokens: int) -> None:
        tally = self._tally
        tally.add(reward, num_tokens)
        if tally.done < tally.total and self._now() - self._told_at < PLAIN_EVERY_S:
            return
        self._told_at = self._now()
        left = tally.elapsed / tally.done * (tally.total - tally.done)
        done = f"graded {tally.done:>{len(str(tally.total))}}/{tally.total}"
        self.message(f"{done}  {tally.text()}  ETA {format_seconds(left)}")

    def close(self) -> None:
        self._stream.flush()


class BarProgress:
    """A bar at the bottom of the terminal, with messages scrolling above it."""

    def __init__(self, stream: TextIO) -> None:
        # Rich is loaded only on a terminal.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._tally = _Tally(time.monotonic)
        self._progress = Progress(
            TextColumn("graded"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(file=stream),
            expand=True,
        )
        self._task = self._progress.add_task("", total=None, visible=False)

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def start(self, total: int) -> None:
        self._tally.start(total)
        self._progress.start()
        self._progress.update(self._task, total=total, visible=True)

    def advance(self, reward: float | None, num_tokens: int) -> None:
        self._tally.add(reward, num_tokens)
        self._progress.update(self._task, advance=1, description=self._tally.text())

    def close(self) -> None:
        self._progress.stop()
