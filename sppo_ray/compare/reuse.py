"""Finished runs of another comparison, taken over where they are the very runs that this one would make."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sppo_ray.compare.plan import Job, Plan, read_plan
from sppo_ray.compare.runner import is_finished, run_path
from sppo_ray.config_loading import load_config


def take_over(plan: Plan, out: Path, other: Path) -> list[str]:
    """Copy from the comparison in `other` each finished run that `plan` asks for and `out` does not hold yet.

    A run is taken when its arm's resolved settings (name, budget and evaluation included), the number of cores and of runs at a
    time are the same. Returns the names of the runs that were taken. Raises UserError when `other` holds no comparison.
    """
    source = read_plan(other)
    if (source.concurrent, source.cores_per_run) != (plan.concurrent, plan.cores_per_run):
        return []
    same = {arm.name for arm in plan.arms if _same_settings(out, other, arm.name)}
    wanted = [job for job in plan.jobs if job.arm in same and is_finished(run_path(other, job))]
    taken = [job for job in wanted if not is_finished(run_path(out, job))]
    for job in taken:
        _copy(job, other, out)
    return [job.name for job in taken]


def _same_settings(out: Path, other: Path, arm: str) -> bool:
    mine, theirs = (folder / "arms" / f"{arm}.yaml" for folder in (out, other))
    return theirs.exists() and load_config(str(mine)) == load_config(str(theirs))


def _copy(job: Job, other: Path, out: Path) -> None:
    """Whole or not at all; checkpoints are not part of a report."""
    target = run_path(out, job)
    temporary = target.with_name(f".{target.name}")
    for path in (temporary, target):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(run_path(other, job), temporary, ignore=shutil.ignore_patterns("checkpoints", "run.lock"))
    os.replace(temporary, target)
