"""Names and paths of all files in a run directory.

config.yaml         the resolved settings           metrics.jsonl    one line a step
environment.json    machine, versions, commit       events.jsonl     what happened
status.json         phase, fleet, heartbeat         weights.jsonl    each version: digest, proofs
summary.json        written last                    tensorboard/     metrics.jsonl for TensorBoard
job.json            who runs it, and where          evaluations/     each held-out evaluation
run.lock            held by the writing process     trajectories/    Parquet, one file a step
curve.png           the learning curve              checkpoints/     resumable states
reliability.png     the critic's, last evaluation   export/          plain Transformers checkpoints
calibration/        of `sppo-ray calibrate`         control/         commands to the run, answers
trace.json          with --trace, for Perfetto      trackers.json    the run's id in W&B, MLflow
report.html         of `sppo-ray report`            trackers/        files of other trackers

Jobs of the REST server also have submission.json, submitted.yaml and output.log.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo_ray.errors import UserError
from sppo_ray.rundir.environment import environment
from sppo_ray.rundir.files import RunFile
from sppo_ray.rundir.jsonlines import TEMPORARY, finite_json, write_atomically
from sppo_ray.rundir.lock import acquire, release
from sppo_ray.rundir.summary import Summary

# Files and folders below the run directory. Other packages use only these names.
CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
STATUS = "status.json"
SUMMARY = "summary.json"
JOB = "job.json"
LOCK = "run.lock"
METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
WEIGHTS = "weights.jsonl"
TENSORBOARD = "tensorboard"
TRACKED = "trackers.json"
TRACKERS = "trackers"
EVALUATIONS = "evaluations"
TRAJECTORIES = "trajectories"
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"  # in a checkpoint's directory
EXPORT = "export"
CALIBRATION = "calibration"
# Written by `sppo_ray.train` for what it was given as objects.
REWARD = "reward.pkl"
DATASET = "dataset.parquet"
HELD_OUT = "held_out.parquet"
CURVE = "curve.png"
RELIABILITY = "reliability.png"
REPORT = "report.html"
TRACE = "trace.json"
CONTROL_INBOX = "control/inbox"
CONTROL_DONE = "control/done"
# Written by the REST server for its jobs.
SUBMISSION = "submission.json"
SUBMITTED_CONFIG = "submitted.yaml"
OUTPUT = "output.log"  # output of the entrypoint

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # names of run directories that the server shows
_STEP = re.compile(r"step-(\d{6,})")
_DEBRIS_AGE_S = 60.0


def step_name(step: int) -> str:
    """Return the file name of a step without its suffix: step-000050."""
    return f"step-{step:06d}"


def step_of(name: str, ending: str = "") -> int | None:
    """The inverse of `step_name`; None for another name."""
    match = _STEP.fullmatch(name.removesuffix(ending)) if name.endswith(ending) else None
    return int(match[1]) if match else None


class RunDir:
    """Paths below a run directory. `RunDir(path)` reads; `RunDir.create` is for the one process
    that writes.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock: int | None = None  # file descriptor

    @classmethod
    def create(cls, path: Path | str, *, resume: bool) -> RunDir:
        """Open `path` for writing and lock it until `close()` or the end of the process. Raises
        UserError when it holds results and `resume` is false, when there is nothing to resume, when
        another live process writes to it, or when it is not writable.
        """
        run = cls(path)
        run.require_free(resume=resume)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run._lock = acquire(run.path / LOCK)
        except PermissionError as error:
            raise UserError(
                f"run directory {run.path} cannot be written ({error.strerror}): choose another --run-dir"
            ) from None
        try:  # again under the lock, so that only one of two simultaneous starts succeeds
            run.require_free(resume=resume)
        except UserError:
            run.close()
            raise
        run._sweep()
        return run

    def require_free(self, *, resume: bool) -> None:
        """Raise UserError when a run cannot start here: results are there and `resume` is false,
        there is nothing to resume, or a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run directory {self.path} is a file: choose another --run-dir")
        if resume and not self.is_run:
            raise UserError(
                f"run directory {self.path} holds no run to resume: check the path, or leave out --resume"
            )
        if self.has_results and not resume:
            raise UserError(
                f"run directory {self.path} holds a run already: continue it with --resume, or choose another"
            )

    @property
    def is_run(self) -> bool:
        """Whether a run started here, even if it failed before its first step."""
        return self.config.exists() or self.has_results

    @property
    def has_results(self) -> bool:
        """Whether the directory holds results. A failed start leaves none, so that it can be
        repeated.
        """
        measured = self.metrics.exists() and self.metrics.stat().st_size > 0
        return (
            measured
            or self.summary.exists()
            or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))
        )

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def environment(self) -> Path:
        return self.path / ENVIRONMENT

    @property
    def status(self) -> Path:
        return self.path / STATUS

    @property
    def summary(self) -> Path:
        return self.path / SUMMARY

    @property
    def job(self) -> Path:
        return self.path / JOB

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def events(self) -> Path:
        return self.path / EVENTS

    @property
    def tensorboard(self) -> Path:
        return self.path / TENSORBOARD

    @property
    def trackers(self) -> Path:
        return self.path / TRACKERS

    @property
    def evaluations(self) -> Path:
        return self.path / EVALUATIONS

    @property
    def trajectories(self) -> Path:
        return self.path / TRAJECTORIES

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def curve(self) -> Path:
        return self.path / CURVE

    @property
    def reliability(self) -> Path:
        return self.path / RELIABILITY

    @property
    def report(self) -> Path:
        return self.path / REPORT

    @property
    def calibration(self) -> Path:
        return self.path / CALIBRATION

    @property
    def export(self) -> Path:
        return self.path / EXPORT

    @property
    def exported_policy(self) -> Path:
        """A plain Transformers checkpoint."""
        return self.export / "policy"

    @property
    def exported_critic(self) -> Path:
        return self.export / "critic"

    def write_json(self, name: str, content: Mapping[str, Any], *, durably: bool = True) -> Path:
        """Write `content` to the file `name` below the run directory, atomically; NaN becomes
        null.
        """
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(finite_json(content), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(path, text + "\n", durably=durably)
        return path

    def write_config(self, text: str) -> Path:
        """Write the resolved settings as YAML (`dump_config`)."""
        write_atomically(self.config, text)
        return self.config

    def write_environment(self) -> Path:
        return self.write_json(ENVIRONMENT, environment())

    def read_environment(self) -> dict[str, Any]:
        """Read environment.json. Raises OSError and ValueError."""
        return json.loads(self.environment.read_text(encoding="utf-8"))

    def write_summary(self, summary: Summary) -> Path:
        return self.write_json(SUMMARY, summary.to_dict())

    @property
    def finished_after(self) -> int | None:
        """Return the last step of a finished run; None when it was stopped, still runs or died
        before its summary.
        """
        # It is written last: an unreadable one means that the run did not finish.
        summary = Summary.read(RunFile(self.path, SUMMARY))
        return summary.steps if summary is not None and summary.status == "finished" else None

    def close(self) -> None:
        """Release the lock. The file stays, because removing it would let two processes lock two
        different files.
        """
        if self._lock is not None:
            release(self._lock)
            self._lock = None

    def _sweep(self) -> None:
        """Remove old temporary files of a killed writer; new ones may belong to the REST server."""
        for folder in (self.path, self.evaluations):
            for debris in folder.glob(f".*{TEMPORARY}"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - debris.stat().st_mtime > _DEBRIS_AGE_S:
                        debris.unlink()
