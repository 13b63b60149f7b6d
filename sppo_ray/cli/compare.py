"""`sppo-ray compare`: run a recipe with several algorithms and report, or compare finished runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from sppo_ray.cli.shared import AllowModule, AllowUnconfined, Overrides, repeated, runs_directory
from sppo_ray.errors import UserError
from sppo_ray.formatting import format_count, format_seconds, printable

if TYPE_CHECKING:
    from sppo_ray.compare.plan import Plan
    from sppo_ray.compare.report import Report
    from sppo_ray.config.permissions import Grants

DEFAULT_ARMS = "sppo,grpo,ppo,rloo,remax"
EXIT_RUNS_FAILED = 1
Names = Annotated[
    list[str] | None,
    Argument(
        metavar="[RECIPE | RUN RUN...]",
        help="a recipe as for train: run it with several algorithms; left out, the comparison in --out is "
        "continued as planned; two or more run directories: compare these runs",
    ),
]
Targets = Annotated[
    str | None, Option(metavar="A,B", help="held-out accuracies to measure the way to (default: by a rule)")
]


def compare(
    names: Names = None,
    *,
    arms: Annotated[
        str | None, Option(help=f"built-in arms between commas (default: {DEFAULT_ARMS})")
    ] = None,
    arm: Annotated[
        list[str],
        repeated(metavar="NAME:KEY=VALUE,...", help="an arm of your own; may start from a built-in one"),
    ],
    seeds: Annotated[int | None, Option(help="seeds 1 to N of each arm")] = None,
    budget: Annotated[
        float | None, Option(metavar="SECONDS", help="of training for each run, evaluations not counted")
    ] = None,
    concurrent: Annotated[int, Option(help="runs at a time, each on its own share of the cores")] = 1,
    plot: Annotated[
        Path | None, Option(metavar="FILE.png", help="of finished runs: draw their learning curves")
    ] = None,
    targets: Targets = None,
    baseline: Annotated[
        str | None, Option(help="arm that the others' speed is measured against (default: the first)")
    ] = None,
    out: Annotated[
        Path | None, Option(help="folder of the comparison (default: runs/compare-RECIPE-TIME)")
    ] = None,
    mix_commits: Annotated[
        bool, Option("--mix-commits", help="keep finished runs of another commit; the report names them")
    ] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="print the arms and their settings, then stop")
    ] = False,
    allow_module: AllowModule,
    allow_unconfined: AllowUnconfined,
    report_only: Annotated[
        bool, Option("--report-only", help="only write the report of the finished runs in --out")
    ] = False,
    overrides: Overrides,
) -> int:
    """Run a recipe with several algorithms, or compare finished runs."""
    from sppo_ray.compare.comparison import compare, proceed, report_from
    from sppo_ray.compare.plan import make_plan, read_plan
    from sppo_ray.config.permissions import Grants
    from sppo_ray.rundir.record import is_run_directory

    accuracies = _numbers(targets) if targets else None
    given = {"--arms": arms, "--arm": arm, "--seeds": seeds, "--budget": budget}
    typed = [*(name for name in given if given[name]), *overrides]
    if len(names or ()) > 1 or (names and is_run_directory(Path(names[0]))):
        return _compare_runs(names or [], plot, accuracies or (), typed)
    if plot is not None:
        raise UserError("--plot draws finished runs: give two or more run directories")
    recipe = names[0] if names else None
    granted = Grants(tuple(allow_module), tuple(allow_unconfined))
    if report_only or recipe is None:
        place = _required_out(out, typed)
        if report_only:
            return _conclude(report_from(place, targets=accuracies, baseline=baseline), place)
        if accuracies or baseline:
            raise UserError(
                "--targets and --baseline are part of a comparison's plan: give the recipe too, or "
                "--report-only"
            )
        _require_permission(read_plan(place), granted, overrides, origin=str(place))
        return _conclude(proceed(place, mix_commits=mix_commits), place)
    arguments: dict[str, Any] = {
        "arms": _arms(arms, arm),
        "seeds": range(1, _required(seeds, "seeds") + 1),
        "budget_s": _required(budget, "budget"),
        "overrides": overrides,
        "concurrent": concurrent,
        "targets": accuracies or (),
        "baseline": baseline,
    }
    plan = make_plan(recipe, **arguments)
    _require_permission(plan, granted, [*overrides, *arm], origin=None)
    if dry_run:
        print(_describe(plan))
        return 0
    place = out or runs_directory() / f"compare-{Path(recipe).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    return _conclude(compare(recipe, out=place, mix_commits=mix_commits, **arguments), place)


def _compare_runs(
    names: Sequence[str], plot: Path | None, targets: Sequence[float], typed: Sequence[str]
) -> int:
    from sppo_ray.compare.finished import comparison_text, draw_runs, read_runs
    from sppo_ray.rundir.record import is_run_directory

    others = [name for name in names if not is_run_directory(Path(name))]
    if others:
        raise UserError(f"{others[0]}: is not a run directory: give one recipe, or two or more runs")
    if len(names) == 1:
        raise UserError(f"{names[0]} is a run: give the directory of another run too, or a recipe")
    if typed:
        raise UserError(f"{typed[0]} needs a recipe: finished runs are compared as they are")
    runs = read_runs([Path(name) for name in names])
    print(printable(comparison_text(runs, targets), sys.stdout), flush=True)
    if plot is not None:
        draw_runs(runs, plot)
        print(f"\n{plot}")
    return 0


def _require_permission(plan: Plan, granted: Grants, typed: Sequence[str], *, origin: str | None) -> None:
    """Check the permission for reward functions of the recipe, or of the comparison's plan in
    `origin`, as `train` does.
    """
    from sppo_ray.config import permissions

    names = permissions.settings_in(typed)
    for arm in plan.arms:
        config = plan.config(arm)
        if origin is None:
            permissions.require_for_file(config, granted, names, plan.recipe)
        else:
            permissions.require_all(config, granted, names, origin)


def _arms(named: str | None, own: list[str]) -> list[str]:
    from sppo_ray.compare.arms import NAME

    wrong = [definition for definition in own if not NAME.match(definition) or ":" not in definition]
    if wrong:
        raise UserError(
            f"--arm {wrong[0]}: write it as NAME:section.key=value,..., or name built-in arms with --arms"
        )
    if named is None:
        named = "" if own else DEFAULT_ARMS
    return [name.strip() for name in named.split(",") if name.strip()] + own


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--targets {text}: write accuracies between commas, e.g. --targets 0.6,0.8"
        ) from None


def _required(value: Any, name: str) -> Any:
    if value is None:
        raise UserError(
            f"--{name} is missing: sppo-ray compare RECIPE --arms sppo,grpo --seeds 3 --budget 150"
        )
    return value


def _required_out(out: Path | None, given: Sequence[str]) -> Path:
    if out is None:
        raise UserError("name a recipe to start a comparison, or the --out of one to continue or report")
    if given:
        raise UserError(
            f"{given[0]} needs a recipe: without one, the comparison in {out} is taken as planned"
        )
    return out


def _describe(plan: Plan) -> str:
    lines = [f"{arm.name:<20} {' '.join(arm.overrides)}" for arm in plan.arms]
    least = len(plan.jobs) * plan.budget_s / plan.concurrent
    lines.append(f"all: {' '.join(plan.common)}")
    lines.append(
        f"{len(plan.jobs)} runs with {plan.budget_s:g} s of training, {plan.concurrent} at a time on "
        f"{format_count(plan.cores_per_run, 'core')}: "
        f"{format_seconds(least)} and what start-up and evaluations take"
    )
    return "\n".join(lines)


def _conclude(report: Report, out: Path) -> int:
    from sppo_ray.compare.markdown import accuracy_table, target_tables

    tables = "\n\n".join([accuracy_table(report), *target_tables(report)])
    print(printable(f"\n{tables}\n\nreport: {out / 'report.md'}", sys.stdout), flush=True)
    if report.failed:
        print(f"{len(report.failed)} runs failed; what they printed is in {out / 'logs'}", file=sys.stderr)
        return EXIT_RUNS_FAILED
    return 0
