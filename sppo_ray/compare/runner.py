"""Run the jobs of a comparison: each a process of its own, so many at a time, each on its own share of the cores.

    jobs, seed by seed --> [core share 0: process] [core share 1: process] ... --> runs.jsonl, a line each

A run that finished is never repeated; one that did not is taken again from the start, because a resumed run's clock would
hold a second warm-up.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_ray.compare.plan import Job, Plan
from sppo_ray.errors import UserError
from sppo_ray.trainer.jsonlines import JsonLines, read_json_lines
from sppo_ray.trainer.rundir import RunDir
from sppo_ray.trainer.text import format_seconds

ENDED = "runs.jsonl"
POLL_S = 0.1
# A run that is asked to end finishes its step and writes a checkpoint; asked twice, it ends at once.
PATIENCE_S = ((signal.SIGTERM, 120.0), (signal.SIGTERM, 20.0), (signal.SIGKILL, 20.0))

Command = Callable[[Job], Sequence[str]]


@dataclass(slots=True)
class _Running:
    job: Job
    cores: tuple[int, ...]
    process: subprocess.Popen[bytes]
    started: float  # time.monotonic()


class Runner:
    """Works off a comparison's jobs in `out`. `say` takes a line of progress; `command` is what a job's process runs."""

    def __init__(self, plan: Plan, out: Path, say: Callable[[str], None], command: Command | None = None) -> None:
        self._plan = plan
        self._out = out
        self._say = say
        self._command = command or self._train
        self._live: list[_Running] = []
        self._wall: list[float] = []  # seconds of each process that finished its run

    def run(self) -> None:
        """Return when every job has been tried. Ctrl-C or SIGTERM ends what runs, cleanly, and raises KeyboardInterrupt.

        A run that fails is said and noted, and the others go on.
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
                start_new_session=True,  # Ctrl-C in a terminal reaches us, and we end the runs in order
            )
        self._live.append(_Running(job, cores, process, time.monotonic()))
        self._say(f"{job.arm}, seed {job.seed}: started on core{'s' * (len(cores) > 1)} {_ranges(cores)}")

    def _conclude(self, running: _Running, ended: JsonLines, *, left: int) -> None:
        job, wall = running.job, time.monotonic() - running.started
        ended.append(
            {"run": job.name, "exit": running.process.returncode, "wall_s": round(wall, 1), "cores": list(running.cores)}
        )
        path = run_path(self._out, job)
        if is_finished(path):
            self._wall.append(wall)
            told = _told(read_summary(path))
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
        return [sys.executable, "-m", "sppo_ray", "train", str(settings), "--run-dir", str(run), "--seed", str(job.seed)]


# ------------------------------------------------------------------------------------------------- runs on disk


def run_path(out: Path, job: Job) -> Path:
    return out / "runs" / job.name


def log_path(out: Path, job: Job) -> Path:
    return out / "logs" / f"{job.name}.log"


def read_summary(path: Path) -> dict[str, Any]:
    """A run directory's summary.json; {} when the run has not ended. Raises UserError when it is damaged."""
    file = RunDir(path).summary
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}): remove {path}, and the comparison makes the run again") from None


def is_finished(path: Path) -> bool:
    return read_summary(path).get("status") == "finished"


def clear_unfinished(path: Path) -> None:
    """Make room for a run to start over. Raises UserError when another process still writes there."""
    if RunDir(path).is_run:
        RunDir.create(path, resume=True).close()  # refuses while the run's lock is held
    shutil.rmtree(path, ignore_errors=True)


def how_it_ended(out: Path) -> dict[str, dict[str, Any]]:
    """The last row of runs.jsonl of each run: {"run", "exit", "wall_s", "cores"}."""
    return {row["run"]: row for row in read_json_lines(out / ENDED)}


def failure(out: Path, job: Job) -> str | None:
    """Why a run is not finished, in a line; None when it has not been tried to the end."""
    row = how_it_ended(out).get(job.name)
    if row is None:
        return None
    if read_summary(run_path(out, job)).get("status") == "stopped":
        return "stopped before the budget was spent"
    log = log_path(out, job)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    errors = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
    return f"exit {row['exit']}: {errors[-1].removeprefix('error: ') if errors else 'no output'}"


# ------------------------------------------------------------------------------------------------------ inside


def core_shares(count: int) -> list[tuple[int, ...]]:
    """The cores that this process may use in `count` equal shares; those left over stay idle, so that all runs are equal."""
    cores = sorted(os.sched_getaffinity(0))
    size = len(cores) // count
    return [tuple(cores[share * size : (share + 1) * size]) for share in range(count)]


@contextlib.contextmanager
def _on(cores: tuple[int, ...]) -> Iterator[None]:
    """A process started in the block, and all that it starts, runs on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends a comparison as Ctrl-C does. Signals belong to the main thread; elsewhere this does nothing."""
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


def _told(summary: Mapping[str, Any]) -> str:
    accuracies = [f"{summary[key]:.2f}" for key in ("initial_accuracy", "final_accuracy") if summary[key] is not None]
    return f"accuracy {' → '.join(accuracies)} after {summary['steps']} steps, {format_seconds(summary['seconds'])} of training"


def _ranges(cores: Sequence[int]) -> str:
    """ "0-3,6" for 0, 1, 2, 3, 6."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
