"""The run directory: its layout in one place, its lock, and what describes a run.

config.yaml          the resolved settings           metrics.jsonl    one line a step
environment.json     machine, versions, commit       events.jsonl     what happened
status.json          phase, fleet, sign of life       weights.jsonl    digest and proofs of each version
summary.json         written last                    tensorboard/     metrics.jsonl for TensorBoard
curve.png            the learning curve              evaluations/     each held-out evaluation in full
checkpoints/         resumable states                trajectories/    Parquet, one file a step
reliability.png      the critic's, last evaluation   export/          plain Transformers checkpoints
job.json             who runs it, and where           calibration/     what `sppo-ray calibrate` measured
                                                     control/         commands to the run and what became of them
run.lock             held by the process that writes
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sppo_ray.errors import UserError
from sppo_ray.trainer.environment import environment
from sppo_ray.trainer.jsonlines import TEMPORARY, finite_json, write_atomically
from sppo_ray.trainer.metrics import EVENTS, METRICS, TENSORBOARD

LOCK = "run.lock"
_DEBRIS_AGE_S = 60.0


@dataclass(frozen=True, slots=True)
class Summary:
    """summary.json: how a run went. Written when it ends; scripts rely on the names."""

    name: str
    status: Literal["finished", "stopped"]  # stopped = ended early on request, resumable
    algorithm: str
    seed: int
    steps: int  # done
    seconds: float  # of training over all incarnations, downtime left out
    samples: int  # trained on
    response_tokens: int  # generated for training: greedy baselines and dropped groups included
    initial_accuracy: float | None  # held-out; None = never evaluated
    final_accuracy: float | None
    best_accuracy: float | None
    policy_version: int
    critic_version: int
    reward_errors: int
    restarts: int  # of workers and of the run itself
    peak_memory: Mapping[str, int] = field(
        default_factory=dict
    )  # bytes by worker, {"learner-0": ...}; the device's on a GPU, else resident

    @property
    def tokens_per_second(self) -> float:
        return self.response_tokens / self.seconds if self.seconds > 0 else math.nan

    def to_dict(self) -> dict[str, Any]:
        return finite_json(asdict(self) | {"tokens_per_second": self.tokens_per_second})


class RunDir:
    """Paths below a run directory. `RunDir(path)` reads; `RunDir.create` is for the one process that writes."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock: int | None = None  # file descriptor

    @classmethod
    def create(cls, path: Path | str, *, resume: bool) -> RunDir:
        """Open `path` for writing and lock it until `close()` or the end of the process.

        Raises UserError when it holds a run's results and `resume` is false, when there is nothing to resume, when another live
        process writes to it, or when it cannot be written.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise UserError(f"run directory {run.path} is a file: choose another --run-dir")
        if resume and not run.is_run:
            raise UserError(f"run directory {run.path} holds no run to resume: check the path, or leave out --resume")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run._acquire()
        except PermissionError as error:
            raise UserError(f"run directory {run.path} cannot be written ({error.strerror}): choose another --run-dir") from None
        if run.has_results and not resume:  # asked under the lock, so that of two starts at once only one gets in
            run.close()
            raise UserError(f"run directory {run.path} holds a run already: continue it with --resume, or choose another")
        run._sweep()
        return run

    @property
    def is_run(self) -> bool:
        """Whether a run began here, were it only to fail before its first step."""
        return self.config.exists() or self.has_results

    @property
    def has_results(self) -> bool:
        """Whether there is something to lose. A start that failed leaves nothing, so that it can be repeated as it was."""
        measured = self.metrics.exists() and self.metrics.stat().st_size > 0
        return measured or self.summary.exists() or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def events(self) -> Path:
        return self.path / EVENTS

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def curve(self) -> Path:
        return self.path / "curve.png"

    @property
    def tensorboard(self) -> Path:
        return self.path / TENSORBOARD

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    def write_json(self, name: str, content: Mapping[str, Any], *, durably: bool = True) -> Path:
        """Write `content` to the file `name` below the run directory, atomically; NaN becomes null."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(finite_json(content), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(path, text + "\n", durably=durably)
        return path

    def write_config(self, text: str) -> Path:
        """The resolved settings as YAML (`dump_config`)."""
        write_atomically(self.config, text)
        return self.config

    def write_environment(self) -> Path:
        return self.write_json(self.environment.name, environment())

    def write_summary(self, summary: Summary) -> Path:
        return self.write_json(self.summary.name, summary.to_dict())

    @property
    def finished_after(self) -> int | None:
        """The last step of a run that finished; None of one that was stopped, still goes on or was cut off at its very end."""
        try:
            summary = json.loads(self.summary.read_bytes())
            return int(summary["steps"]) if summary["status"] == "finished" else None
        except (OSError, ValueError, KeyError, TypeError):  # it is written last: one that cannot be read was not finished
            return None

    def close(self) -> None:
        """Give the lock back. The file stays: removing it would let two others lock two different files."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # closing is not enough while a fork of this process holds a copy
            os.close(self._lock)
            self._lock = None

    def _sweep(self) -> None:
        """Remove what a killed writer left half-written. Not what is new: the REST server writes here too."""
        for folder in (self.path, self.evaluations):
            for debris in folder.glob(f".*{TEMPORARY}"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - debris.stat().st_mtime > _DEBRIS_AGE_S:
                        debris.unlink()

    def _acquire(self) -> None:
        """Take the lock. The kernel drops it with its process, so that a dead writer's is simply taken over."""
        path = self.path / LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 256, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"run directory {self.path} is in use by {holder or 'another process'}: wait for it, stop it, or choose "
                    "another --run-dir"
                ) from None
            raise UserError(
                f"run directory {self.path}: its file system keeps no locks ({error.strerror}): mount it with them "
                "(Lustre: -o flock), or choose another --run-dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._lock = descriptor
