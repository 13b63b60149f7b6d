"""Read a run's figures for the report: its curve, costs, memory and time by stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_ray.compare.curves import Point, area, until
from sppo_ray.compare.plan import Job
from sppo_ray.compare.runner import failure, read_summary, run_path
from sppo_ray.errors import UserError
from sppo_ray.rundir.evaluations import read_evaluations
from sppo_ray.rundir.metrics import read_metrics

OFF_THE_CLOCK = {"seconds/step", "seconds/total", "seconds/evaluate", "seconds/checkpoint", "seconds/log"}
"""Metrics that are not training time, or not a stage."""


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One finished run."""

    seed: int
    initial_accuracy: float
    accuracy: float  # at the budget
    best_accuracy: float  # of the evaluations within the budget
    area: float  # mean accuracy over the budget
    last_accuracy: float  # of the last evaluation, as in summary.json; may be later than the budget
    accuracy_half_width: float  # of the last evaluation's 95 % interval, over its prompts
    seconds: float  # all of the run, as in summary.json
    steps: int
    samples: int  # trained on
    tokens: int  # generated for training
    curve: tuple[Point, ...]
    peak_memory: Mapping[str, int]  # bytes by role, summed over its workers
    stages: Mapping[str, float]  # seconds of training time by stage


@dataclass(frozen=True, slots=True)
class Missing:
    """A run that is not finished."""

    seed: int
    reason: str | None  # None = not run yet


def read_run(out: Path, job: Job, budget_s: float) -> RunFigures | Missing:
    """Read a job's run directory. Raises UserError when a finished run has lost its evaluations."""
    path = run_path(out, job)
    summary = read_summary(path)
    if summary is None or summary.status != "finished":
        return Missing(job.seed, failure(out, job))
    evaluations = graded_evaluations(path)
    curve = [_point(evaluation) for evaluation in evaluations]
    within = until(curve, budget_s)
    return RunFigures(
        seed=summary.seed,
        initial_accuracy=curve[0].accuracy,
        accuracy=within[-1].accuracy,
        best_accuracy=max(point.accuracy for point in within),
        area=area(curve, budget_s),
        last_accuracy=curve[-1].accuracy,
        accuracy_half_width=max(_half_width(evaluation["overall"]) for evaluation in evaluations),
        seconds=summary.seconds,
        steps=summary.steps,
        samples=summary.samples,
        tokens=summary.response_tokens,
        curve=tuple(curve),
        peak_memory=_by_role(summary.peak_memory),
        stages=stage_seconds(read_metrics(path)),
    )


def graded_evaluations(path: Path) -> list[dict[str, Any]]:
    """Read evaluations/*.json in the order of steps, without those whose verifier failed on every
    response. Raises UserError when the one before training is missing or failed, because every
    curve starts there.
    """
    found = read_evaluations(path)
    graded = [evaluation for evaluation in found if evaluation["overall"]["accuracy"] is not None]
    if not graded or graded[0] is not found[0] or graded[0]["train_seconds"] > 0:
        what = (
            "is missing"
            if not found or found[0]["train_seconds"] > 0
            else "has no response that the verifier could grade"
        )
        raise UserError(
            f"{path}: the evaluation before training {what}, and every curve of a comparison starts there: "
            "see the run's log for "
            "the verifier's errors, remove the run directory, and the comparison makes it again"
        )
    return graded


def stage_seconds(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sum the seconds of each stage over a run's steps, from metrics.jsonl. `other` is the time
    outside all stages.
    """
    names = {name for row in rows for name in row if name.startswith("seconds/")} - OFF_THE_CLOCK
    return {
        name.removeprefix("seconds/"): math.fsum(row.get(name) or 0.0 for row in rows)
        for name in sorted(names)
    }


def _point(evaluation: Mapping[str, Any]) -> Point:
    return Point(
        evaluation["train_seconds"],
        evaluation["train_samples"],
        evaluation["train_tokens"],
        evaluation["overall"]["accuracy"],
    )


def _half_width(overall: Mapping[str, float]) -> float:
    return (overall["accuracy_high"] - overall["accuracy_low"]) / 2


def _by_role(peak_memory: Mapping[str, int]) -> dict[str, int]:
    """{"learner-0": a, "learner-1": b} is {"learner": a + b}."""
    roles: dict[str, int] = {}
    for worker, size in peak_memory.items():
        name, _, number = worker.rpartition("-")
        role = name if number.isdigit() else worker
        roles[role] = roles.get(role, 0) + size
    return roles
