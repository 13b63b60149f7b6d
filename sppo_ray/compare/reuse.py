"""Reuse finished runs of another comparison if they are identical to runs of this one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sppo_ray.compare.plan import Job, Plan, read_plan
from sppo_ray.compare.runner import code_of, is_finished, run_path
from sppo_ray.config.loading import load_config
from sppo_ray.rundir.environment import code_label, environment
from sppo_ray.rundir.layout import CHECKPOINTS, LOCK


def take_over(plan: Plan, out: Path, other: Path, *, mix_commits: bool = False) -> list[str]:
    """Copy from the comparison in `other` each finished run of `plan` that `out` does not hold yet.

    A run is taken when its arm's resolved settings (name, budget and evaluation included), the
    number of cores and of runs at a time are the same; unless `mix_commits`, also the commit, which
    is then this code's. Returns the names of the copied runs. Raises
    UserError when `other` holds no comparison.
    """
    source = read_plan(other)
    if (source.concurrent, source.cores_per_run) != (plan.concurrent, plan.cores_per_run):
        return []
    same = {arm.name for arm in plan.arms if _same_settings(out, other, arm.name)}
    wanted = [job for job in plan.jobs if job.arm in same and is_finished(run_path(other, job))]
    taken = [job for job in wanted if not is_finished(run_path(out, job))]
    if not mix_commits:
        now = code_label(environment())
        taken = [job for job in taken if code_of(run_path(other, job)) == now]
    for job in taken:
        _copy(job, other, out)
    return [job.name for job in taken]


def _same_settings(out: Path, other: Path, arm: str) -> bool:
    mine, theirs = (folder / "arms" / f"{arm}.yaml" for folder in (out, other))
    return theirs.exists() and load_config(str(mine)) == load_config(str(theirs))


def _copy(job: Job, other: Path, out: Path) -> None:
    """Copy atomically, without checkpoints, which a report does not need."""
    target = run_path(out, job)
    temporary = target.with_name(f".{target.name}")
    for path in (temporary, target):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(run_path(other, job), temporary, ignore=shutil.ignore_patterns(CHECKPOINTS, LOCK))
    os.replace(temporary, target)
