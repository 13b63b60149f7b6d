"""Show the progress of a run: a live display in a terminal, one line per step in a log, or nothing.

The loop calls the same methods on each. Plain lines are ASCII and flushed, for a Ray job's log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TextIO

from sppo_ray.evaluation.scores import EvalReport, Scores
from sppo_ray.formatting import format_fraction, format_seconds, printable

STAGE_LABELS = {
    "generate-wait": "gen",
    "update": "upd",
    "sync": "sync",
    "evaluate": "eval",
    "checkpoint": "ckpt",
}
"""Short names of the loop's stages, in display order; other stages follow under their own name."""

_NO_STAGE = ("step", "other", "total")  # metrics of the group seconds/ that are not stages


@dataclass(frozen=True, slots=True)
class StepView:
    """The displayed values of one finished step."""

    step: int  # steps done, including this one
    reward: float
    response_length: float  # mean tokens
    tokens_per_second: float  # response tokens trained on, over the step's wall time
    stages: Mapping[str, float]  # name -> seconds
    policy_version: int
    fleet: str = ""  # one line on the workers, e.g. "rollout 2/2 healthy"
    budget_left: float | None = None  # seconds of training; None = only the number of steps ends the run

    @classmethod
    def of(
        cls,
        step: int,
        metrics: Mapping[str, float],
        *,
        policy_version: int,
        fleet: str = "",
        budget_left: float | None = None,
    ) -> StepView:
        """Build it from the step's metrics: those of `summarise_samples` and `StageClock`."""
        seconds = {
            name.removeprefix("seconds/"): value
            for name, value in metrics.items()
            if name.startswith("seconds/")
        }
        wall = seconds["step"]
        return cls(
            step=step,
            reward=metrics["reward/mean"],
            response_length=metrics["response/length_mean"],
            tokens_per_second=metrics["response/tokens"] / wall if wall > 0 else float("nan"),
            stages={name: value for name, value in seconds.items() if name not in _NO_STAGE},
            policy_version=policy_version,
            fleet=fleet,
            budget_left=budget_left,
        )


class Progress(Protocol):
    """Follows one run. `close` must be called, to restore the terminal; it may be called twice."""

    def start(self, total: int, done: int) -> None:
        """Start a run of `total` steps; an earlier incarnation did `done` of them."""
        ...

    def message(self, text: str) -> None: ...

    def step(self, view: StepView) -> None: ...

    def evaluation(self, report: EvalReport) -> None: ...

    def rested(self) -> None:
        """Note the end of a pause, so that it does not count as the time of a step."""
        ...

    def close(self) -> None: ...


class StepTimer:
    """Estimates the seconds left from a smoothed time between steps, including evaluations and
    checkpoints.

    The mean is exponential with weight `alpha` on the newest step and bias-corrected, so that the
    first step already gives an estimate.
    """

    def __init__(self, *, alpha: float = 0.1, now: Callable[[], float] = time.monotonic) -> None:
        self._alpha, self._now = alpha, now
        self._sum = self._weight = 0.0
        self.total = self.done = 0
        self.budget_left: float | None = None
        self.started = self._mark = now()

    def start(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self.started = self._mark = self._now()

    def restart_clock(self) -> None:
        """Ignore the time since the last step, e.g. for the evaluation before the first."""
        self._mark = self._now()

    def tick(self, done: int, budget_left: float | None = None) -> None:
        """Count a step: `done` steps are done, and this many seconds of a limited budget are
        left.
        """
        self.budget_left = budget_left
        now, taken = self._now(), done - self.done
        for _ in range(taken):
            self._sum += self._alpha * ((now - self._mark) / taken - self._sum)
            self._weight += self._alpha * (1.0 - self._weight)
        self.done, self._mark = done, now

    @property
    def elapsed(self) -> float:
        return self._now() - self.started

    @property
    def step_seconds(self) -> float:
        """Smoothed seconds per step; NaN before the first."""
        return self._sum / self._weight if self._weight else float("nan")

    @property
    def seconds_left(self) -> float:
        by_steps = max(self.total - self.done, 0) * self.step_seconds
        return by_steps if self.budget_left is None else min(by_steps, max(self.budget_left, 0.0))

    def position(self, *, aligned: bool = False) -> str:
        """Format "step 12/130", without the total when a budget of seconds ends the run."""
        if self.budget_left is not None:
            return f"step {self.done}"
        return f"step {self.done:>{len(str(self.total)) if aligned else 0}}/{self.total}"

    @property
    def is_timed(self) -> bool:
        return self._weight > 0.0


class SilentProgress:
    """Shows nothing."""

    def start(self, total: int, done: int) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def step(self, view: StepView) -> None:
        pass

    def evaluation(self, report: EvalReport) -> None:
        pass

    def rested(self) -> None:
        pass

    def close(self) -> None:
        pass


class PlainProgress:
    """One aligned line a step: step 12/130  reward 0.61  held-out 0.70  len 41  812 tok/s  gen 1.2s
    upd 0.9s  ETA 3m20s.
    """

    def __init__(self, title: str, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._title, self._stream = title, stream
        self._timer = StepTimer(now=now)
        self._accuracy = float("nan")
        self._widths: list[int] = []

    def start(self, total: int, done: int) -> None:
        self._timer.start(total, done)
        resumed = f", {done} done already" if done else ""
        self.message(f"{self._title}: {total} steps{resumed}")

    def message(self, text: str) -> None:
        print(printable(text, self._stream), file=self._stream, flush=True)

    def step(self, view: StepView) -> None:
        self._timer.tick(view.step, view.budget_left)
        cells = [
            self._timer.position(aligned=True),
            f"reward {format_fraction(view.reward)}",
            f"held-out {format_fraction(self._accuracy)}",
            f"len {view.response_length:.0f}",
            f"{view.tokens_per_second:.0f} tok/s",
            stage_text(view.stages),
            f"ETA {format_seconds(self._timer.seconds_left)}",
        ]
        self.message(self._aligned(cells))

    def evaluation(self, report: EvalReport) -> None:
        if not self._timer.is_timed:
            self._timer.restart_clock()
        self._accuracy = report.accuracy
        self.message(evaluation_text(report))

    def rested(self) -> None:
        self._timer.restart_clock()

    def close(self) -> None:
        self._stream.flush()

    def _aligned(self, cells: list[str]) -> str:
        """Align a column to its largest width so far."""
        self._widths = [
            max(len(cell), width) for cell, width in zip(cells, self._widths or [0] * len(cells), strict=True)
        ]
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)).rstrip()


def ordered_stages(stages: Mapping[str, float]) -> dict[str, float]:
    """Return label -> seconds, with the loop's own stages first."""
    known = [name for name in STAGE_LABELS if name in stages]
    return {
        STAGE_LABELS.get(name, name): stages[name]
        for name in known + sorted(stages.keys() - STAGE_LABELS.keys())
    }


def stage_text(stages: Mapping[str, float]) -> str:
    return " ".join(f"{label} {format_seconds(seconds)}" for label, seconds in ordered_stages(stages).items())


def evaluation_text(report: EvalReport) -> str:
    """Return one line for the whole report, and one per source when there are several."""
    head = (
        f"held-out at step {report.step}: {_scores_text(report.overall, report.k)}  "
        f"({format_seconds(report.seconds)})"
    )
    if len(report.by_source) < 2:
        return head
    width = max(len(scores.source) for scores in report.by_source)
    return "\n".join(
        [head]
        + [f"  {scores.source:<{width}}  {_scores_text(scores, report.k)}" for scores in report.by_source]
    )


def _scores_text(scores: Scores, k: int) -> str:
    interval = f"[{format_fraction(scores.accuracy_low)}, {format_fraction(scores.accuracy_high)}]"
    name = "accuracy" if scores.is_share_solved else "mean reward"
    cells = [f"{name} {format_fraction(scores.accuracy)} {interval}"]
    if not scores.is_share_solved:
        cells.append(f"solved {format_fraction(scores.pass_at[1])}")
    if k > 1:
        cells += [
            f"pass@{k} {format_fraction(scores.pass_at[k])}",
            f"maj@{k} {format_fraction(scores.majority)}",
        ]
    cells += [f"len {scores.response_length_mean:.0f}", f"truncated {scores.truncation_rate:.1%}"]
    if scores.reward_errors:
        cells.append(f"reward errors {scores.reward_errors}")
    return "  ".join(cells + [f"n {scores.num_prompts}"])
