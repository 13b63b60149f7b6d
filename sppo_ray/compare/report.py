"""Compute the figures of a comparison from its run directories: per arm over its finished runs, per
target over its crossings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sppo_ray.compare.arms import Arm
from sppo_ray.compare.curves import Crossing, crossing
from sppo_ray.compare.plan import Job, Plan
from sppo_ray.compare.runner import run_path
from sppo_ray.compare.runs import Missing, RunFigures, read_run
from sppo_ray.compare.statistics import NO_RATIO, Estimate, Ratio, estimate, ratio
from sppo_ray.rundir.environment import code_label
from sppo_ray.rundir.jsonlines import finite_json
from sppo_ray.rundir.layout import RunDir

TARGET_SHARES = (0.5, 0.8)
"""Default targets, as fractions of the way from the base's accuracy to the best arm's at the
budget.
"""
LEAST_RISE = 0.05  # with a smaller gain there are no targets


@dataclass(frozen=True, slots=True)
class ToTarget:
    """An arm's cost to reach one target. Runs that did not reach it count with their whole cost
    within the budget.
    """

    target: float
    reached: int
    runs: int
    seconds: Estimate
    tokens: Estimate
    samples: Estimate
    speed: Ratio  # baseline's seconds by the arm's
    token_saving: Ratio  # baseline's tokens by the arm's


@dataclass(frozen=True, slots=True)
class ArmReport:
    """An arm over its finished runs."""

    name: str
    overrides: tuple[str, ...]
    note: str
    runs: tuple[RunFigures, ...]
    missing: tuple[Missing, ...]
    accuracy: Estimate  # at the budget
    best_accuracy: Estimate
    area: Estimate
    seconds: Estimate  # of the whole run; above the budget where a step ended after it
    steps: Estimate
    samples: Estimate
    tokens: Estimate
    targets: tuple[ToTarget, ...]
    peak_memory: Mapping[str, float]  # bytes by role, mean over runs
    stages: Mapping[str, float]  # seconds by stage, mean over runs


@dataclass(frozen=True, slots=True)
class Report:
    """report.json; `report.md` and the plots show the same."""

    plan: Plan
    targets: tuple[float, ...]
    targets_given: bool  # given by the user, not by the rule
    base_accuracy: float  # mean of all runs before training; NaN = none finished
    # the widest 95 % interval (over prompts) of a run's evaluations, mean over runs
    accuracy_half_width: float
    arms: tuple[ArmReport, ...]
    machine: Mapping[str, Any]  # environment.json of a finished run; {} = none
    commits: tuple[str, ...]  # of all finished runs; more than one = the code changed in between

    @property
    def failed(self) -> list[tuple[str, Missing]]:
        """Return (arm, run) of each run that was started and did not finish."""
        return [(arm.name, run) for arm in self.arms for run in arm.missing if run.reason is not None]

    @property
    def is_complete(self) -> bool:
        return not any(arm.missing for arm in self.arms)

    def arm(self, name: str) -> ArmReport:
        """Return the arm with this name. Raises KeyError for an unknown name."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; NaN becomes null."""
        return finite_json(asdict(self))


def make_report(plan: Plan, out: Path) -> Report:
    """Read every run of the plan in `out`. Raises UserError when a finished run's files are
    damaged.
    """
    found = {
        arm.name: [read_run(out, Job(arm.name, seed), plan.budget_s) for seed in plan.seeds]
        for arm in plan.arms
    }
    runs = {name: [run for run in of_arm if isinstance(run, RunFigures)] for name, of_arm in found.items()}
    missing = {
        name: tuple(run for run in of_arm if isinstance(run, Missing)) for name, of_arm in found.items()
    }
    everything = [run for of_arm in runs.values() for run in of_arm]
    base = _mean([run.initial_accuracy for run in everything])
    targets = plan.targets or default_targets(
        base, [_mean([run.accuracy for run in of_arm]) for of_arm in runs.values()]
    )
    environments = [
        RunDir(run_path(out, Job(name, run.seed))).read_environment()
        for name, of_arm in runs.items()
        for run in of_arm
    ]
    return Report(
        plan=plan,
        targets=targets,
        targets_given=bool(plan.targets),
        base_accuracy=base,
        accuracy_half_width=_mean([run.accuracy_half_width for run in everything]),
        arms=tuple(_arm(arm, runs, missing[arm.name], targets, plan) for arm in plan.arms),
        machine=environments[0] if environments else {},
        commits=tuple(dict.fromkeys(code_label(environment) for environment in environments)),
    )


def largest_first(columns: Iterable[Mapping[str, float]]) -> list[str]:
    """Return the names in all arms' figures (seconds by stage, bytes by role), largest sum
    first.
    """
    totals: dict[str, float] = {}
    for column in columns:
        for name, figure in column.items():
            totals[name] = totals.get(name, 0.0) + figure
    return sorted(totals, key=lambda name: -totals[name])


def default_targets(base: float, accuracies: Sequence[float]) -> tuple[float, ...]:
    """Return the targets: TARGET_SHARES of the way from `base` to the best mean accuracy, rounded
    to two decimals; () when the gain is too small.
    """
    best = max((accuracy for accuracy in accuracies if math.isfinite(accuracy)), default=math.nan)
    if not best - base >= LEAST_RISE:
        return ()
    return tuple(dict.fromkeys(round(base + share * (best - base), 2) for share in TARGET_SHARES))


# ------------------------------------------------------------------------------------------- inside


def _arm(
    arm: Arm,
    runs: Mapping[str, Sequence[RunFigures]],
    missing: tuple[Missing, ...],
    targets: Sequence[float],
    plan: Plan,
) -> ArmReport:
    mine, baseline = runs[arm.name], runs[plan.baseline]

    def over_runs(figure: Callable[[RunFigures], float]) -> Estimate:
        return estimate([figure(run) for run in mine])

    return ArmReport(
        name=arm.name,
        overrides=arm.overrides,
        note=arm.note,
        runs=tuple(mine),
        missing=missing,
        accuracy=over_runs(lambda run: run.accuracy),
        best_accuracy=over_runs(lambda run: run.best_accuracy),
        area=over_runs(lambda run: run.area),
        seconds=over_runs(lambda run: run.seconds),
        steps=over_runs(lambda run: run.steps),
        samples=over_runs(lambda run: run.samples),
        tokens=over_runs(lambda run: run.tokens),
        targets=tuple(
            _to_target(target, mine, baseline, plan, is_baseline=arm.name == plan.baseline)
            for target in targets
        ),
        peak_memory=_means([run.peak_memory for run in mine]),
        stages=_means([run.stages for run in mine]),
    )


def _to_target(
    target: float,
    runs: Sequence[RunFigures],
    baseline: Sequence[RunFigures],
    plan: Plan,
    *,
    is_baseline: bool,
) -> ToTarget:
    ours = [crossing(run.curve, target, plan.budget_s) for run in runs]
    theirs = [crossing(run.curve, target, plan.budget_s) for run in baseline]
    cut, their_cut = _censored(ours), _censored(theirs)

    def against_baseline(figure: Callable[[Crossing], float]) -> Ratio:
        if is_baseline:
            return NO_RATIO
        return ratio(
            [figure(c) for c in theirs],
            [figure(c) for c in ours],
            baseline_censored=their_cut,
            arm_censored=cut,
        )

    return ToTarget(
        target=target,
        reached=len(ours) - cut,
        runs=len(ours),
        seconds=estimate([c.seconds for c in ours], censored=cut),
        tokens=estimate([c.tokens for c in ours], censored=cut),
        samples=estimate([c.samples for c in ours], censored=cut),
        speed=against_baseline(lambda c: c.seconds),
        token_saving=against_baseline(lambda c: c.tokens),
    )


def _censored(crossings: Sequence[Crossing]) -> int:
    return sum(not c.reached for c in crossings)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each name over the rows; a row without it counts as 0."""
    names = sorted({name for row in rows for name in row})
    return {name: _mean([row.get(name, 0.0) for row in rows]) for name in names}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
