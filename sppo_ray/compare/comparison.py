"""Run a comparison and write its report, or only write the report."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sppo_ray.compare.markdown import to_markdown
from sppo_ray.compare.plan import LOCK, Plan, cores_per_run, make_plan, read_plan, write_plan
from sppo_ray.compare.plots import draw
from sppo_ray.compare.report import Report, make_report
from sppo_ray.compare.reuse import take_over
from sppo_ray.compare.runner import Runner, require_same_code
from sppo_ray.errors import UserError
from sppo_ray.rundir.jsonlines import write_atomically

Say = Callable[[str], None]


def say(line: str) -> None:
    """Print a line of progress immediately, also into a pipe."""
    print(line, flush=True)


def compare(
    recipe: str,
    arms: Sequence[str],
    seeds: Sequence[int],
    budget_s: float,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    concurrent: int = 1,
    targets: Sequence[float] = (),
    baseline: str | None = None,
    reuse: Sequence[Path] = (),
    mix_commits: bool = False,
    say: Say = say,
) -> Report:
    """Run every arm with every seed for `budget_s` seconds of training and write the report into
    `out`.

    `arms` are built-in names or definitions `NAME:[BUILT-IN,]section.key=value,...`; `overrides`
    ("section.key=value") apply to all of them. `concurrent` runs execute at a time, each on its own
    share of the cores. `targets` are held-out accuracies (by default chosen by a rule), `baseline`
    the arm that the others' speed is measured against (by default the first). When `out` holds the
    comparison already, its finished runs are kept, and new arms and seeds are added. Unless
    `mix_commits`, finished runs of another commit are refused, and not taken over from `reuse`.

    Runs that fail are part of the report (`Report.failed`). Raises UserError before anything runs
    when the comparison cannot work, and KeyboardInterrupt on Ctrl-C, with the runs ended and a
    report of what is finished.
    """
    plan = make_plan(
        recipe,
        arms,
        seeds,
        budget_s,
        overrides=overrides,
        concurrent=concurrent,
        targets=targets,
        baseline=baseline,
    )
    with _alone_in(out):
        plan = write_plan(plan, out)
        for other in reuse:
            taken = take_over(plan, out, other, mix_commits=mix_commits)
            if taken:
                say(f"taken over from {other}: {', '.join(taken)}")
        return _work_off(plan, out, say, mix_commits)


def proceed(out: Path, *, mix_commits: bool = False, say: Say = say) -> Report:
    """Continue the comparison in `out` as it was planned. Raises UserError when there is none, or
    when the number of cores per run has changed, or the commit without `mix_commits`.
    """
    plan = read_plan(out)
    plan = replace(plan, cores_per_run=cores_per_run(plan.concurrent))
    with _alone_in(out):
        return _work_off(write_plan(plan, out), out, say, mix_commits)


def report_from(out: Path, *, targets: Sequence[float] | None = None, baseline: str | None = None) -> Report:
    """Write the report of the finished runs in `out`, without running anything. `targets` and
    `baseline` replace the plan's; no targets = by the rule.

    Raises UserError when `out` holds no comparison or the baseline is not one of its arms.
    """
    plan = read_plan(out)
    names = [arm.name for arm in plan.arms]
    if baseline is not None and baseline not in names:
        raise UserError(f"--baseline {baseline}: no such arm in {out}; there are {', '.join(names)}")
    targets = plan.targets if targets is None else tuple(sorted(targets))
    return _write(make_report(replace(plan, targets=targets, baseline=baseline or plan.baseline), out), out)


# ------------------------------------------------------------------------------------------- inside


def _work_off(plan: Plan, out: Path, say: Say, mix_commits: bool) -> Report:
    if not mix_commits:
        require_same_code(plan, out)
    try:
        Runner(plan, out, say).run()
    except KeyboardInterrupt:
        _write(make_report(plan, out), out)
        say(f"what is finished is in {out / 'report.md'}; continue with: sppo-ray compare --out {out}")
        raise
    return _write(make_report(plan, out), out)


def _write(report: Report, out: Path) -> Report:
    plots = draw(report, out)
    write_atomically(
        out / "report.json",
        json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )
    write_atomically(out / "report.md", to_markdown(report, plots))
    return report


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Lock the folder, so that two processes cannot start the same runs. The kernel releases the
    lock with the process.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("w")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}): choose another") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"--out {out}: another comparison is under way there: wait for it, or choose another"
            ) from None
        yield
