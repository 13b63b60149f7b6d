"""The live display: one panel at the bottom of the terminal, with messages scrolling above it."""

from __future__ import annotations

import atexit
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sppo_ray.display.progress import StepTimer, StepView, evaluation_text, ordered_stages
from sppo_ray.evaluation.scores import EvalReport
from sppo_ray.formatting import format_fraction, format_seconds, sparkline

HISTORY = 1000  # rewards kept for the sparkline
HISTORY_WIDTH = 30  # its columns
STAGE_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


class LiveProgress:
    """A Rich display, redrawn in place four times a second; `close`, or else the exit handler,
    restores the cursor.
    """

    def __init__(self, title: str, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self.console = Console(file=stream)
        self._timer = StepTimer(now=now)
        self._rewards: deque[float] = deque(maxlen=HISTORY)
        self._accuracies: list[float] = []
        self._report: EvalReport | None = None
        self._view: StepView | None = None
        # transient: at the end the last messages are what is left, and no panel with an ETA
        self._live = Live(
            get_renderable=self.render, console=self.console, refresh_per_second=4, transient=True
        )

    def start(self, total: int, done: int) -> None:
        self._timer.start(total, done)
        self._live.start()
        # an exit that skips the loop's finally would leave the cursor hidden
        atexit.register(self.close)

    def message(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def step(self, view: StepView) -> None:
        self._timer.tick(view.step, view.budget_left)
        self._rewards.append(view.reward)
        self._view = view

    def evaluation(self, report: EvalReport) -> None:
        if not self._timer.is_timed:
            self._timer.restart_clock()
        self._accuracies.append(report.accuracy)
        self._report = report
        self.message(evaluation_text(report))

    def rested(self) -> None:
        self._timer.restart_clock()

    def close(self) -> None:
        self._live.stop()
        atexit.unregister(self.close)

    def render(self) -> RenderableType:
        """Return the current panel."""
        parts: list[RenderableType] = [self._bar()]
        body = Table.grid(padding=(0, 3), expand=True)
        body.add_column(no_wrap=True)
        body.add_column(ratio=1)
        body.add_row(self._figures(), self._stages())
        parts += [Text(), body]
        if self._view and self._view.fleet:
            parts += [Text(), Text(self._view.fleet, style="dim", overflow="ellipsis", no_wrap=True)]
        return Panel(
            Group(*parts),
            title=Text(self._title, style="bold"),
            title_align="left",
            border_style="dim",
            padding=(0, 1),
        )

    def _bar(self) -> RenderableType:
        timer = self._timer
        line = Table.grid(padding=(0, 2), expand=True)
        for ratio in (None, 1, None, None, None):
            line.add_column(ratio=ratio, no_wrap=True)
        line.add_row(
            Text(timer.position(), style="bold"),
            ProgressBar(total=max(timer.total, 1), completed=timer.done),
            Text(f"{format_seconds(timer.step_seconds)}/step", style="dim"),
            Text(f"elapsed {format_seconds(timer.elapsed, whole=True)}", style="dim"),
            Text(f"ETA {format_seconds(timer.seconds_left)}", style="bold"),
        )
        return line

    def _figures(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(justify="right", style="bold", no_wrap=True, min_width=5)
        table.add_column(no_wrap=True, min_width=HISTORY_WIDTH)
        view = self._view
        trend = Text(sparkline(list(self._rewards), width=HISTORY_WIDTH), style="cyan")
        table.add_row("reward", format_fraction(view.reward) if view else "-", trend)
        is_share = self._report is None or self._report.overall.is_share_solved
        table.add_row("accuracy" if is_share else "mean reward", *self._accuracy())
        table.add_row(
            "length", f"{view.response_length:.0f}" if view else "-", Text("tokens a response", style="dim")
        )
        table.add_row(
            "throughput", f"{view.tokens_per_second:,.0f}" if view else "-", Text("tokens/s", style="dim")
        )
        table.add_row("policy", str(view.policy_version) if view else "-", Text("version", style="dim"))
        return table

    def _accuracy(self) -> tuple[str, Text]:
        if self._report is None:
            return "-", Text()
        scores = self._report.overall
        low, high = format_fraction(scores.accuracy_low), format_fraction(scores.accuracy_high)
        since = f", first {format_fraction(self._accuracies[0])}" if len(self._accuracies) > 1 else ""
        return format_fraction(scores.accuracy), Text(f"held-out {low}-{high}{since}", style="dim")

    def _stages(self) -> RenderableType:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=1)
        stages = ordered_stages(self._view.stages) if self._view else {}
        longest = max(stages.values(), default=0.0)
        for index, (label, seconds) in enumerate(stages.items()):
            colour = STAGE_COLOURS[index % len(STAGE_COLOURS)]
            table.add_row(
                label, format_seconds(seconds), Bar(size=longest or 1.0, begin=0, end=seconds, color=colour)
            )
        return table
