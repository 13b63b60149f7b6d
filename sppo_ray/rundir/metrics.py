"""Metrics and events of a run on disk: metrics.jsonl, events.jsonl.

metrics.jsonl has one line per step and one per evaluation: {"step", "time", "<group>/<name>":
number, ...}. "step" is the number of steps done (0 = before training), "time" seconds since 1970.
The groups:

    reward/ accuracy/ response/ value/ advantage/ staleness/ rollout/   what the step's samples were (`summarise_samples`)
    policy/ critic/                                                    what the updates reported
    mismatch/                                                          engine against learner, nats: first_batch_* before the
                                                                       step's first update
                                                                       (`logprob_check.py`),
                                                                       logprob_difference_* in it
    seconds/                                                           where the time went (`StageClock`); seconds/total is
                                                                       training time over all
                                                                       incarnations, the time axis
                                                                       of the learning curve
    time/<role>/<label>                                                shares of seconds/step of a role's workers, which
                                                                       add up to 1: time/rollout/generate,
                                                                       .../sync, .../wait
    busy/<worker>                                                      share of seconds/step in which a rollout worker had
                                                                       a request
    eval/                                                              held-out figures (`EvalReport.metrics`)
    train/value/                                                       beside eval/value/: the critic's calibration on the
                                                                       samples trained on since the
                                                                       evaluation before
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sppo_ray.redaction import redact, redact_tree
from sppo_ray.rundir.files import RunFile, whole_lines
from sppo_ray.rundir.jsonlines import JsonLines, parse_object, read_json_lines
from sppo_ray.rundir.layout import EVENTS, METRICS

Figures = Mapping[str, float]
_TAIL_BYTES = 256 * 1024  # enough for the last line of metrics.jsonl
_CLOCK_GROUPS = ("time", "seconds", "busy")
_CLOCK_NAMES = ("seconds", "seconds_mean", "seconds_max")


def depends_on_the_clock(name: str) -> bool:
    """Whether a metric measures a time or a duration. All other metrics of a synchronous run on a
    CPU follow bit for bit from settings and seed, even after interruptions.
    """
    return name.partition("/")[0] in _CLOCK_GROUPS or name.rpartition("/")[2] in _CLOCK_NAMES


def is_training_step(row: Mapping[str, Any]) -> bool:
    """Whether a row of metrics.jsonl is a training step, not an evaluation."""
    return "seconds/step" in row


class MetricsWriter:
    """Writes a run's metrics, one step at a time. `close()` it, or use it as a context manager."""

    def __init__(self, run_dir: Path) -> None:
        self._lines = JsonLines(run_dir / METRICS)

    def write(self, step: int, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Append one line. Returns the finite metrics as plain numbers.

        JSON has no NaN or infinity: such a metric is written as null and its name listed in
        "nonfinite", so that a reader can tell it from a missing metric.
        """
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        row: dict[str, Any] = {"step": step, "time": time.time()} | {
            name: finite.get(name) for name in numbers
        }
        if len(finite) < len(numbers):
            row["nonfinite"] = [name for name in numbers if name not in finite]
        self._lines.append(row)
        return finite

    def truncate_after(self, step: int) -> int:
        """Drop the steps after `step`, which a resumed run repeats. Returns the number of lines
        dropped.
        """
        return self._lines.keep(lambda row: row["step"] <= step)

    def flush_durably(self) -> None:
        """Return when every line is on the disk."""
        self._lines.flush_durably()

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class EventLog:
    """Writes the events of a run in order: starts, checkpoints, syncs, failures, restarts."""

    def __init__(self, run_dir: Path) -> None:
        self._lines = JsonLines(run_dir / EVENTS)

    def write(self, kind: str, message: str, **fields: Any) -> None:
        """Append {"time", "kind", "message", **fields}, without secrets; `fields` are plain JSON
        values.
        """
        self._lines.append(
            {"time": time.time(), "kind": kind, "message": redact(message)} | redact_tree(fields)
        )

    def flush_durably(self) -> None:
        """Return when every line is on the disk."""
        self._lines.flush_durably()

    def close(self) -> None:
        self._lines.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl in order, also while the run continues."""
    return list(read_json_lines(run_dir / METRICS))


def served_rows(run_dir: Path, *, longest: int, most: int) -> Iterator[dict[str, Any]]:
    """Read the rows in the first `most` bytes of metrics.jsonl, without lines that are incomplete,
    damaged or longer than `longest` bytes.
    """
    try:
        lines = RunFile(run_dir, METRICS).open()
    except FileNotFoundError:
        return
    with lines:
        for line in whole_lines(lines, longest=longest, most=most):
            row = parse_object(line)
            if row is not None:
                yield row


def last_step(run_dir: Path) -> Figures:
    """Return the finite metrics of the newest training step, reading only the end of the file;
    empty when there is none.
    """
    try:
        with RunFile(run_dir, METRICS).open() as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]  # the last piece is empty or incomplete
    except OSError:
        return {}
    rows = (row for line in reversed(lines) if (row := parse_object(line)) is not None)
    newest = next((row for row in rows if is_training_step(row)), {})
    return {name: value for name, value in newest.items() if _is_finite(value)}


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    return list(read_json_lines(run_dir / EVENTS))


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def _number(name: str, value: float) -> int | float:
    """A plain Python number; NumPy's scalars and booleans become one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"metric {name} is {value!r}: a metric is a number") from None
