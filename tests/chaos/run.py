"""A training run as a user starts it, watched from outside: its process, its status.json, its
workers' process ids.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

from sppo_ray.rundir.commands import Kind, send
from sppo_ray.rundir.metrics import read_events

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSES = {  # as Ray titles their processes
    "rollout": "RolloutWorker",
    "learner": "LearnerRank",
    "critic": "CriticRank",
    "reward": "RewardActor",
    "reference": "ReferenceRank",
}
POLL_S = 0.02
ENDS_WITHIN_S, GONE_WITHIN_S = 90.0, 30.0
T = TypeVar("T")


class RunEnded(Exception):
    """The trainer's process ended while something was awaited of it."""


class WaitedTooLong(Exception):
    """What was awaited did not come in time."""


class TrainingRun:
    """A training process. Always call `close` after `start`. Its output is in `log`."""

    def __init__(
        self, path: Path, overrides: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self.log = path.with_suffix(".log")
        self.resumes = 0
        self.orphans: list[str] = []  # what a killed trainer left behind for longer than it may
        self._overrides = list(overrides)
        self._environment = os.environ | dict(environment or {})
        # every process that was ever seen below the trainer
        self._known: set[psutil.Process] = set()
        self.process: subprocess.Popen[bytes] | None = None

    # ----------------------------------------------------------------------------------- life cycle

    def start(self, *, resume: bool = False) -> None:
        command = [
            sys.executable,
            "-m",
            "sppo_ray",
            "train",
            "quickstart",
            "--run-dir",
            str(self.path),
            *self._overrides,
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.resumes += resume
        with self.log.open("ab") as log:
            self.process = self._launch(command + (["--resume"] if resume else []), log)

    def _launch(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
            env=self._environment,
            start_new_session=True,  # Ctrl-C is for the harness, which ends the run in good order
        )

    @property
    def pid(self) -> int:
        assert self.process is not None, "start() comes first"
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def resume(self) -> None:
        """Start the next incarnation; the one before has ended, its workers are given time to."""
        assert self.process is not None
        self.process.wait()
        self.orphans += self._leftovers()
        self.start(resume=True)

    def end(self) -> list[str]:
        """SIGTERM, and SIGKILL for what does not go. Returns what went wrong, as sentences."""
        faults: list[str] = []
        if self.is_alive:
            self.refresh()
            os.kill(self.pid, signal.SIGTERM)
            try:
                code = self.process.wait(ENDS_WITHIN_S)
                if code != 128 + signal.SIGTERM:
                    faults.append(f"exit code {code} after SIGTERM")
            except subprocess.TimeoutExpired:
                faults.append(f"did not end within {ENDS_WITHIN_S:.0f} s of SIGTERM")
        return faults + [f"orphan: {line}" for line in self.orphans + self._leftovers()]

    def close(self) -> None:
        """Nothing of the run is left afterwards."""
        if self.is_alive:
            self.refresh()
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.process.wait()
        for process in self._known:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(self._known), timeout=10)

    def refresh(self) -> list[psutil.Process]:
        """Processes below the trainer now: Ray's daemons, workers and their children."""
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.pid).children(recursive=True)
            self._known |= set(found)
            return found
        return []

    def _leftovers(self) -> list[str]:
        """Processes of ended incarnations that do not end by themselves; they are killed."""
        _, alive = psutil.wait_procs(list(self._known), timeout=GONE_WITHIN_S)
        lines = []
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                lines.append(f"{process.pid} {' '.join(process.cmdline())[:80]}")
                process.kill()
        psutil.wait_procs(alive, timeout=10)
        self._known.clear()
        return lines

    # --------------------------------------------------------------------------------- what it says

    @property
    def status(self) -> dict[str, Any]:
        with suppress(FileNotFoundError):
            return json.loads((self.path / "status.json").read_text())
        return {}

    @property
    def step(self) -> int:
        return self.status.get("state", {}).get("step", 0)

    def pid_of(self, name: str, status: Mapping[str, Any]) -> int | None:
        """Of an actor that is up, by its name in the roster: "rollout-1", "learner-0", "reward"."""
        return next((row["pid"] for row in status.get("actors", []) if row["name"] == name), None)

    def workers_coming_up(self, role: str) -> list[int]:
        """Processes of a role that are not in the roster yet, by their titles."""
        known = {row["pid"] for row in self.status.get("actors", [])}
        return [
            process.pid
            for process in self.refresh()
            if CLASSES[role] in _title(process) and process.pid not in known
        ]

    def events(self, since: float) -> Iterator[dict[str, Any]]:
        """Events after a time (seconds since 1970)."""
        if (self.path / "events.jsonl").exists():
            yield from (event for event in read_events(self.path) if event["time"] > since)

    def send(self, kind: Kind, **fields: Any) -> None:
        send(self.path, kind, by="chaos", **fields)

    def wait(self, what: str, condition: Callable[[], T | None], within_s: float) -> T:
        """What `condition` returns once it is true. Raises RunEnded and WaitedTooLong."""
        deadline = time.monotonic() + within_s
        while not (found := condition()):
            if not self.is_alive:
                raise RunEnded(f"the trainer ended with exit code {self.process.poll()} before {what}")
            if time.monotonic() > deadline:
                status = self.status
                raise WaitedTooLong(
                    f"{what} did not come within {within_s:.0f} s: phase {status.get('phase')}, "
                    f"{status.get('stage')}"
                )
            time.sleep(POLL_S)
        return found

    def is_whole(self, step: int, since: float = 0.0) -> bool:
        """Whether `step` steps are finished and every worker serves, by a status written after
        `since`.
        """
        status = self.status
        # A death that the trainer has not noticed yet leaves its table as it was: the processes
        # themselves are asked.
        return _says_whole(status, step, since) and all(self.is_up(row) for row in status.get("actors", []))

    def is_up(self, actor: Mapping[str, Any]) -> bool:
        """Whether the process of an actor, a row of the roster, runs; a frozen one does not."""
        return _is_running(actor["pid"])

    def wait_until_whole(self, step: int, within_s: float, since: float = 0.0) -> None:
        """Wait for `is_whole`; times are in seconds since 1970. Raises RunEnded and
        WaitedTooLong.
        """
        self.wait(f"step {step} with a whole fleet", lambda: self.is_whole(step, since), within_s)
        self.refresh()

    def rest_until_whole(self, within_s: float, since: float) -> None:
        """Pause the run until all workers are up, so that the replacement starts faster.

        The run has already continued without the lost worker. The step does not matter, because a
        loss that is detected late returns the run to a checkpoint. Raises RunEnded and
        WaitedTooLong.
        """
        if self.is_whole(0, since):
            return
        self.send("pause")
        try:
            self.wait_until_whole(0, within_s, since)
        finally:
            self.send("resume")


def _says_whole(status: Mapping[str, Any], step: int, since: float) -> bool:
    rows = status.get("fleet", [])
    return (
        status.get("phase") in ("training", "paused")
        and status.get("heartbeat", 0.0) > since
        and status.get("state", {}).get("step", -1) >= step
        and len(rows) == status.get("wanted_workers")
        and all(row["state"] == "HEALTHY" for row in rows)
        and all(row["pid"] for row in status.get("actors", []))
    )


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def _title(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""
