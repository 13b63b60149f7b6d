"""Runs of a study whose results are kept, one JSON file each, so that a long study can be made in
any number of commands, also from a fresh checkout.

    Study, arm, learning rate, seed --> `sppo-ray train` --> runs/paper/STUDY/     (not committed)
                                                        --> results/paper/STUDY/runs/NAME.json

A kept run is not made again unless its settings, recipe or base model have changed. A run that was
interrupted starts over, because a resumed run's time would include a second warm-up.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import RESULTS, commit, machine
from sppo_ray.compare.arms import Arm, make_arms
from sppo_ray.compare.curves import Point
from sppo_ray.compare.plan import Job, Plan, standing_overrides
from sppo_ray.compare.runner import (
    Runner,
    clear_unfinished,
    core_shares,
    how_it_ended,
    read_summary,
    run_path,
)
from sppo_ray.compare.runs import Missing, read_run
from sppo_ray.config.loading import dump_config, load_config, recipe_tree
from sppo_ray.models.bundled import PREFIX, recipe_key
from sppo_ray.rundir.jsonlines import finite_json, write_atomically
from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.rundir.status import read_status

REPORTS = RESULTS / "paper"
RUNS = Path("runs/paper")
LAST_STEPS = 5  # over which the training reward at the end is averaged
WARM_UP_STEPS = 1  # that do not count for the seconds of a token
SECONDS_PER_TOKEN = "seconds per token"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Study:
    """One table. `overrides` hold for all its arms."""

    about: str
    recipe: str
    # name: built-in arm or definition, as of `sppo-ray compare --arm`
    arms: Mapping[str, str]
    budget_s: float  # of training a run; of runs that end by steps, about their time
    axes: tuple[str, ...]  # of AXES in `single_sample_report`
    targets: tuple[float, ...]  # held-out accuracies, fixed beforehand
    overrides: tuple[str, ...] = ()
    # the study in which the learning rates are swept; None = in this one
    rates_of: str | None = None
    rate: float | None = None  # of all arms, without a sweep
    # the study whose runs these are, when only the seconds differ; None = own runs
    runs_of: str | None = None
    baseline: str = "sppo"
    most_seeds: int = 5  # of an arm
    num_cores: int = 1  # of a run, so that two studies can be made at a time
    # core of each role, "" = all others; nothing = a role may use all cores of the run
    cores: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """One training."""

    arm: str
    rate: float  # learning rate of the policy
    seed: int

    @property
    def label(self) -> str:
        return f"{self.arm}-lr{self.rate:g}"

    @property
    def name(self) -> str:
        return Job(self.label, self.seed).name


@dataclass(frozen=True, slots=True)
class Kept:
    """The result of a run, as kept in its file."""

    run: Run
    commit: str
    wall_s: float
    failed: str | None  # why the run did not finish; its figures are empty then
    curve: tuple[Point, ...]
    samples_per_prompt: int
    figures: Mapping[str, float]  # over the run, see `_figures`
    stages: Mapping[str, float]  # seconds of training time by stage
    peak_memory: Mapping[str, int]  # bytes by role


def plan_of(study: Study, run: Run) -> Plan:
    """Return a plan of this run alone."""
    common = (*standing_overrides(study.budget_s), *study.overrides)
    base = load_config(study.recipe, common)
    definition = study.arms[run.arm]
    given = definition if definition == run.arm else f"{run.arm}:{definition}"
    (arm,) = make_arms([given], base)
    overrides = (*arm.overrides, f"learner.optimizer.lr={run.rate:g}")
    arm = Arm(run.label, overrides, arm.note)
    seeds, cores = (run.seed,), study.num_cores
    return Plan(study.recipe, study.overrides, (arm,), seeds, study.budget_s, 1, cores, (), run.label)


def fingerprint(study: Study, run: Run) -> str:
    """Return 16 hex digits that change with the settings, the recipe, the models or the cores of a
    run, but not with a new setting of the package.
    """
    plan = plan_of(study, run)
    config = plan.config(plan.arms[0])
    models = [config.learner.model] + ([config.critic.model] if config.has_critic else [])
    content = {
        "recipe": recipe_tree(study.recipe)[1],
        "overrides": [*plan.common, *plan.arms[0].overrides],
        "models": [
            recipe_key(model.removeprefix(PREFIX)) if model.startswith(PREFIX) else model for model in models
        ],
        "cores": [study.num_cores, dict(study.cores)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def kept_path(name: str, run: Run) -> Path:
    return REPORTS / name / "runs" / f"{run.name}.json"


def read_kept(name: str, study: Study, run: Run) -> Kept | None:
    """Return the kept result of a run; None when there is none, or one of other settings."""
    path = kept_path(name, run)
    if not path.is_file():
        return None
    tree = json.loads(path.read_text(encoding="utf-8"))
    if tree.pop("fingerprint") != fingerprint(study, run):
        return None
    del tree["machine"], tree["settings"]
    curve = tuple(Point(**point) for point in tree.pop("curve"))
    return Kept(run=Run(**tree.pop("run")), curve=curve, **tree)


def make(name: str, study: Study, run: Run, say: Say) -> Kept:
    """Do a run and keep its result, also when it fails. Raises KeyboardInterrupt on Ctrl-C and
    SIGTERM, with the run ended and nothing kept, also when only the run gets the signal.
    """
    out = RUNS / name
    plan = plan_of(study, run)
    (arm,), job = plan.arms, Job(run.label, run.seed)
    (out / "arms").mkdir(parents=True, exist_ok=True)
    config = plan.config(arm)
    write_atomically(out / "arms" / f"{arm.name}.yaml", dump_config(config))
    clear_unfinished(run_path(out, job))  # what is left of other settings
    started = time.monotonic()
    with first_cores(study.num_cores), pinned(run_path(out, job), study.cores):
        Runner(plan, out, say).run()
    ended = how_it_ended(out).get(job.name, {})
    wall_s = ended.get("wall_s", round(time.monotonic() - started, 1))
    summary = read_summary(run_path(out, job))
    found = read_run(out, job, study.budget_s if summary is None else max(1.0, summary.seconds))
    samples = config.data.samples_per_prompt
    if isinstance(found, Missing):
        if ended.get("exit") == -signal.SIGTERM:  # someone has stopped it
            raise KeyboardInterrupt
        kept = Kept(run, commit(), wall_s, found.reason or "not run", (), samples, {}, {}, {})
    else:
        figures = _figures(list(read_metrics(run_path(out, job))))
        kept = Kept(
            run, commit(), wall_s, None, found.curve, samples, figures, found.stages, found.peak_memory
        )
    content = asdict(kept) | {
        "fingerprint": fingerprint(study, run),
        "settings": [study.recipe, *plan.common, *arm.overrides],
        "machine": machine(),
    }
    path = kept_path(name, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(finite_json(content), indent=1, ensure_ascii=False) + "\n")
    return kept


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the signals of a run: means over its steps, the worst step, the last rewards."""
    means = ("policy/masked_fraction", "value/explained_variance", "tracker/explained_variance")
    found = {name: _mean([row[name] for row in rows if row.get(name) is not None]) for name in means}
    sizes = [row["policy/effective_sample_size"] for row in rows if "policy/effective_sample_size" in row]
    rewards = [row["reward/mean"] for row in rows if row.get("reward/mean") is not None]
    found |= {
        "least effective_sample_size": min(sizes) if sizes else None,
        "training reward at the end": _mean(rewards[-LAST_STEPS:]),
        SECONDS_PER_TOKEN: _slope(rows),
    }
    return {name: value for name, value in found.items() if value is not None}


def _slope(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return seconds of training by generated tokens, without the first steps."""
    steps = [row for row in rows if row.get("tokens/total")][WARM_UP_STEPS - 1 :]
    if len(steps) < 2:
        return None
    first, last = steps[0], steps[-1]
    return (last["seconds/total"] - first["seconds/total"]) / (last["tokens/total"] - first["tokens/total"])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


@contextmanager
def claimed(name: str, run: Run) -> Iterator[bool]:
    """Within the block, no other process makes this run. False when another makes it already."""
    path = RUNS / name / "claims" / run.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:  # closing releases it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def first_cores(count: int) -> Iterator[None]:
    """Within the block, processes that this one starts run on its first `count` cores only. Exits
    when there are fewer.
    """
    before = os.sched_getaffinity(0)
    if len(before) < count:
        sys.exit(f"a run of this study takes {count} cores, and this process may use {len(before)}")
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def pinned(run_dir: Path, cores: Mapping[str, int]) -> Iterator[None]:
    """Within the block, keep the processes of a run's roles on cores of their own. Nothing is done
    without `cores`.
    """
    if not cores:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_keep_pinned, args=(run_dir, cores, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _keep_pinned(run_dir: Path, cores: Mapping[str, int], over: threading.Event) -> None:
    (available,) = core_shares(1)
    while not over.wait(1.0):  # again and again: actors and their threads start one after the other
        for actor in read_status(run_dir).actors:
            role, _, number = actor.name.rpartition("-")
            place = cores.get(role if number.isdigit() else actor.name, cores[""])
            if actor.pid is not None:
                _pin(actor.pid, available[place])


def _pin(pid: int, core: int) -> None:
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            for thread in one.threads():
                os.sched_setaffinity(thread.id, {core})
    except (psutil.Error, ProcessLookupError):  # it has ended
        return
