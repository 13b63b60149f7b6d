"""`sppo-ray compare`: from parsed options to a comparison, and its figures on the terminal."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from sppo_ray.compare.arms import NAME
from sppo_ray.compare.comparison import compare, proceed, report_from
from sppo_ray.compare.markdown import accuracy_table, target_tables
from sppo_ray.compare.plan import Plan, make_plan
from sppo_ray.compare.report import Report
from sppo_ray.errors import UserError
from sppo_ray.trainer.text import format_seconds, printable

DEFAULT_ARMS = "sppo,grpo,ppo,rloo,remax"
EXIT_RUNS_FAILED = 1


def run(options: Namespace, overrides: Sequence[str], runs: Path) -> int:
    """The command. Returns 1 when a run failed, else 0. `runs` is where a comparison without --out goes."""
    targets = _numbers(options.targets) if options.targets else None
    if options.report_only:
        report = report_from(_required_out(options, overrides), targets=targets, baseline=options.baseline)
        return _conclude(report, options.out)
    if options.recipe is None:
        out = _required_out(options, overrides)
        if targets or options.baseline:
            raise UserError("--targets and --baseline are part of a comparison's plan: give the recipe too, or --report-only")
        return _conclude(proceed(out), out)
    arguments = {
        "arms": _arms(options),
        "seeds": range(1, _required(options, "seeds") + 1),
        "budget_s": _required(options, "budget"),
        "overrides": overrides,
        "concurrent": options.concurrent,
        "targets": targets or (),
        "baseline": options.baseline,
    }
    if options.dry_run:
        print(_describe(make_plan(options.recipe, **arguments)))
        return 0
    out = options.out or runs / f"compare-{Path(options.recipe).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    return _conclude(compare(options.recipe, out=out, **arguments), out)


def _arms(options: Namespace) -> list[str]:
    named = options.arms if options.arms is not None else ("" if options.arm else DEFAULT_ARMS)
    wrong = [definition for definition in options.arm if not NAME.match(definition) or ":" not in definition]
    if wrong:
        raise UserError(f"--arm {wrong[0]}: write it as NAME:section.key=value,..., or name built-in arms with --arms")
    return [name.strip() for name in named.split(",") if name.strip()] + options.arm


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--targets {text}: write accuracies between commas, e.g. --targets 0.6,0.8") from None


def _required(options: Namespace, name: str) -> float:
    value = getattr(options, name)
    if value is None:
        raise UserError(f"--{name} is missing: sppo-ray compare RECIPE --arms sppo,grpo --seeds 3 --budget 150")
    return value


def _required_out(options: Namespace, overrides: Sequence[str]) -> Path:
    if options.out is None:
        raise UserError("name a recipe to start a comparison, or the --out of one to continue or report")
    given = [f"--{name}" for name in ("arms", "arm", "seeds", "budget") if getattr(options, name)]
    if given or overrides:
        raise UserError(
            f"{(*given, *overrides)[0]} needs a recipe: without one, the comparison in {options.out} is taken as planned"
        )
    return options.out


def _describe(plan: Plan) -> str:
    lines = [f"{arm.name:<20} {' '.join(arm.overrides)}" for arm in plan.arms]
    least = len(plan.jobs) * plan.budget_s / plan.concurrent
    lines.append(f"all: {' '.join(plan.common)}")
    lines.append(
        f"{len(plan.jobs)} runs with {plan.budget_s:g} s of training, {plan.concurrent} at a time on {plan.cores_per_run} cores: "
        f"{format_seconds(least)} and what start-up and evaluations take"
    )
    return "\n".join(lines)


def _conclude(report: Report, out: Path) -> int:
    tables = "\n\n".join([accuracy_table(report), *target_tables(report)])
    print(printable(f"\n{tables}\n\nreport: {out / 'report.md'}", sys.stdout), flush=True)
    if report.failed:
        print(f"{len(report.failed)} runs failed; what they printed is in {out / 'logs'}", file=sys.stderr)
        return EXIT_RUNS_FAILED
    return 0
