"""The process that runs a run: job.json of the trainer, submission.json of the REST server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sppo_ray.rundir.files import NO_FILE, FileModel, Number, RunFile, Whole
from sppo_ray.rundir.jsonlines import finite_json, write_atomically
from sppo_ray.rundir.layout import JOB, SUBMISSION, RunDir


class ContinuedRun(FileModel):
    """A finished run that another one starts from."""

    path: str
    name: str = ""
    algorithm: str = ""
    seed: Whole = 0
    steps: Whole = 0
    model: str = ""
    """What it started from itself."""
    critic: bool = False
    """Whether its critic is used, too."""


class JobRecord(FileModel):
    """Process, host and job of a run."""

    run_id: str | None = None
    submission_id: str | None = None
    """Ray's submission id; null for a process that was not submitted to Ray."""
    supervisor: str | None = None
    """Id of the `--restarts` process that restarts it."""
    ray_address: str | None = None
    host: str | None = None
    pid: Whole | None = None
    entrypoint: tuple[str, ...] = ()
    created: Number = None
    """First start of all (Unix time)."""
    job_started: Number = None
    """First start of this job."""
    started: Number = None
    """This start."""
    models: dict[str, str] = {}
    """Commit of each model of the hub; a resumed run takes the same."""
    continues: ContinuedRun | None = None
    """The run whose export this one started from (`train --from`)."""


class SubmissionRecord(FileModel):
    """A job as the server submitted it to Ray; describes a run until its trainer starts."""

    submission_id: str | None = None
    recipe: str | None = None
    overrides: dict[str, Any] = {}
    entrypoint: str | None = None
    metadata: dict[str, str] = {}
    by: str | None = None
    created: Number = None
    error: str | None = None
    """Why Ray refused it."""


def read_job(run_dir: Path) -> JobRecord:
    """Read job.json; empty when it is missing or damaged."""
    return JobRecord.read(RunFile(run_dir, JOB)) or JobRecord()


def write_job_record(run_dir: RunDir, record: JobRecord) -> None:
    run_dir.write_json(JOB, record.model_dump())


def remember_models(run_dir: RunDir, commits: dict[str, str]) -> None:
    """Add the commits of hub models to job.json."""
    record = read_job(run_dir.path)
    if commits.items() - record.models.items():
        write_job_record(run_dir, record.model_copy(update={"models": record.models | commits}))


def read_submission(run_dir: Path) -> SubmissionRecord | None:
    """Read submission.json; empty when it is missing, None when it is damaged."""
    file = RunFile(run_dir, SUBMISSION)
    return SubmissionRecord() if file.stamp() == NO_FILE else SubmissionRecord.read(file)


def write_submission(run_dir: Path, record: SubmissionRecord) -> None:
    content = finite_json(record.model_dump(exclude_unset=True))
    write_atomically(run_dir / SUBMISSION, json.dumps(content, indent=2) + "\n")
