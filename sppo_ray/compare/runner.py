"""Run the jobs of a comparison: one process each, several at a time, each on its own share of the
cores.

    jobs, seed by seed --> [core share 0: process] [core share 1: process] ...
        --> runs.jsonl, a line each

A finished run is never repeated. An unfinished run starts over, because a resumed run's time would
include a second warm-up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_ray.compare.plan import Job, Plan
from sppo_ray.config.permissions import asks_for, flags_for
from sppo_ray.errors import UserError
from sppo_ray.formatting import format_seconds
from sppo_ray.rundir.environment import code_label, environment
from sppo_ray.rundir.files import RunFile
from sppo_ray.rundir.jsonlines import JsonLines, read_json_lines
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.summary import Summary

ENDED = "runs.jsonl"
POLL_S = 0.1
# The first signal ends a run after its step, with a checkpoint; the second ends it at once.
PATIENCE_S = ((signal.SIGTERM, 120.0), (signal.SIGTERM, 20.0), (signal.SIGKILL, 20.0))

Command = Callable[[Job], Sequence[str]]


@dataclass(slots=True)
class _Running:
    job: Job
    cores: tuple[int, ...]
    process: subprocess.Popen[bytes]
    started: float  # time.monotonic()


class Runner:
    """Runs a comparison's jobs in `out`. `say` receives lines of progress; `command` returns the
    command of a job.
    """

    def __init__(
        self, plan: Plan, out: Path, say: Callable[[str], None], command: Command | None = None
    ) -> None:
        self._plan = plan
        self._out = out
        self._say = say
        self._command = command or self._train
        self._live: list[_Running] = []
        self._wall: list[float] = []  # seconds of each process that finished its run

    def run(self) -> None:
        """Run every job once. Ctrl-C or SIGTERM ends the current runs cleanly and raises
        KeyboardInterrupt. A failed run is reported and recorded, and the others continue.
        """
        waiting = deque(job for job in self._plan.jobs if not is_finished(run_path(self._out, job)))
        total, live = len(self._plan.jobs), self._live
        if len(waiting) < total:
            self._say(f"{total - len(waiting)} of {total} runs are finished already")
        free = deque(core_shares(self._plan.concurrent))
        with _sigterm_interrupts(), contextlib.closing(JsonLines(self._out / ENDED)) as ended:
            try:
                while waiting or live:
                    while waiting and free:
                        self._start(waiting.popleft(), free.popleft())
                    time.sleep(POLL_S)
                    for running in [running for running in live if running.process.poll() is not None]:
                        live.remove(running)
                        free.append(running.cores)
                        self._conclude(running, ended, left=len(waiting) + len(live))
            finally:
                self._end()

    def _start(self, job: Job, cores: tuple[int, ...]) -> None:
        clear_unfinished(run_path(self._out, job))
        log = log_path(self._out, job)
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as output, _on(cores):
            process = subprocess.Popen(
                self._command(job),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal reaches only this process, which then ends the runs
                start_new_session=True,
            )
        self._live.append(_Running(job, cores, process, time.monotonic()))
        self._say(f"{job.arm}, seed {job.seed}: started on core{'s' * (len(cores) > 1)} {_ranges(cores)}")

    def _conclude(self, running: _Running, ended: JsonLines, *, left: int) -> None:
        job, wall = running.job, time.monotonic() - running.started
        ended.append(
            {
                "run": job.name,
                "exit": running.process.returncode,
                "wall_s": round(wall, 1),
                "cores": list(running.cores),
            }
        )
        path = run_path(self._out, job)
        summary = read_summary(path)
        if summary is not None and summary.status == "finished":
            self._wall.append(wall)
            told = _told(summary)
        else:
            told = f"FAILED ({failure(self._out, job)})"
        rest = f"; {left} to go{self._remaining(left)}" if left else ""
        self._say(f"{job.arm}, seed {job.seed}: {told}{rest}")

    def _remaining(self, left: int) -> str:
        if not self._wall:
            return ""
        return f", about {format_seconds(left * sum(self._wall) / len(self._wall) / self._plan.concurrent)}"

    def _end(self) -> None:
        live = self._live
        if live:
            self._say(f"ending {len(live)} run{'s' * (len(live) > 1)}; once more ends at once")
        for number, patience in PATIENCE_S:
            for running in live:
                if running.process.poll() is None:
                    running.process.send_signal(number)
            deadline = time.monotonic() + patience
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                for running in live:
                    running.process.wait(max(deadline - time.monotonic(), 0.01))
                return

    def _train(self, job: Job) -> list[str]:
        settings, run = self._out / "arms" / f"{job.arm}.yaml", run_path(self._out, job)
        arm = next(arm for arm in self._plan.arms if arm.name == job.arm)
        # when the comparison started or continued
        config = self._plan.config(arm)
        granted = flags_for(asks_for(config.reward, config.environment))
        words = [
            sys.executable,
            "-m",
            "sppo_ray",
            "train",
            str(settings),
            "--run-dir",
            str(run),
            "--seed",
            str(job.seed),
        ]
        return [*words, *granted]


# ------------------------------------------------------------------------------------- runs on disk


def run_path(out: Path, job: Job) -> Path:
    return out / "runs" / job.name


def log_path(out: Path, job: Job) -> Path:
    return out / "logs" / f"{job.name}.log"


def read_summary(path: Path) -> Summary | None:
    """Read a run directory's summary.json; None when the run has not ended. Raises UserError when
    it is damaged.
    """
    file = RunDir(path).summary
    try:
        return Summary.load(RunFile(path, file.name))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{file}: not JSON ({error}): remove {path}, and the comparison makes the run again"
        ) from None


def require_same_code(plan: Plan, out: Path) -> None:
    """Raise UserError when further runs would join finished ones of another state of the code."""
    finished = [job for job in plan.jobs if is_finished(run_path(out, job))]
    now = code_label(environment())
    others = Counter(label for job in finished if (label := code_of(run_path(out, job))) != now)
    if others and len(finished) < len(plan.jobs):
        found = ", ".join(f"{count} of {label}" for label, count in others.items())
        raise UserError(
            f"{out}: holds finished runs of another commit ({found}; this is {now}): choose another "
            "--out, or keep them with --mix-commits (the report names the commits)"
        )


def code_of(path: Path) -> str:
    """The state of the code that a finished run was made with."""
    return code_label(RunDir(path).read_environment())


def is_finished(path: Path) -> bool:
    summary = read_summary(path)
    return summary is not None and summary.status == "finished"


def clear_unfinished(path: Path) -> None:
    """Remove an unfinished run, so that it can start over. Raises UserError when another process
    still writes there.
    """
    if RunDir(path).is_run:
        RunDir.create(path, resume=True).close()  # raises while the run's lock is held
    shutil.rmtree(path, ignore_errors=True)


def how_it_ended(out: Path) -> dict[str, dict[str, Any]]:
    """Return the last row of runs.jsonl for each run: {"run", "exit", "wall_s", "cores"}."""
    return {row["run"]: row for row in read_json_lines(out / ENDED)}


def failure(out: Path, job: Job) -> str | None:
    """Say in one line why a run is not finished; None when no attempt has ended."""
    row = how_it_ended(out).get(job.name)
    if row is None:
        return None
    summary = read_summary(run_path(out, job))
    if summary is not None and summary.status == "stopped":
        return "stopped before the budget was spent"
    log = log_path(out, job)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    errors = [line for line in lines if line.startswith("error: ")] or [
        line for line in lines if line.strip()
    ]
    return f"exit {row['exit']}: {errors[-1].removeprefix('error: ') if errors else 'no output'}"


# ------------------------------------------------------------------------------------------- inside


def core_shares(count: int) -> list[tuple[int, ...]]:
    """Split this process's cores into `count` equal shares; remaining cores stay idle, so that all
    runs are equal.
    """
    cores = sorted(os.sched_getaffinity(0))
    size = len(cores) // count
    return [tuple(cores[share * size : (share + 1) * size]) for share in range(count)]


@contextlib.contextmanager
def _on(cores: tuple[int, ...]) -> Iterator[None]:
    """Within the block, start processes that run, with their children, on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Within the block, SIGTERM ends a comparison as Ctrl-C does. Outside the main thread it does
    nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _told(summary: Summary) -> str:
    known = [value for value in (summary.initial_accuracy, summary.final_accuracy) if value is not None]
    return (
        f"accuracy {' → '.join(f'{value:.2f}' for value in known)} after {summary.steps} steps, "
        f"{format_seconds(summary.seconds)} of training"
    )


def _ranges(cores: Sequence[int]) -> str:
    """ "0-3,6" for 0, 1, 2, 3, 6."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
