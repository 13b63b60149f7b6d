"""Read the state of a run directory defensively.

A job may be writing it, may have died while writing, or may be of another release. A missing or
damaged file counts as not written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sppo_ray.config.outside_yaml import read_yaml
from sppo_ray.errors import UserError
from sppo_ray.rundir.commands import CommandRecord, recent_commands
from sppo_ray.rundir.files import NO_FILE, FileModel, Number, RunFile, Stamp, Whole, names_in
from sppo_ray.rundir.job import JobRecord, SubmissionRecord, read_job, read_submission
from sppo_ray.rundir.layout import (
    CHECKPOINTS,
    CONFIG,
    CONTROL_DONE,
    CONTROL_INBOX,
    JOB,
    LOCK,
    MANIFEST,
    METRICS,
    RUN_NAME,
    STATUS,
    SUBMISSION,
    SUBMITTED_CONFIG,
    step_name,
    step_of,
)
from sppo_ray.rundir.lock import LockHolder, lock_holder
from sppo_ray.rundir.metrics import Figures, last_step
from sppo_ray.rundir.status import RunStatus, read_status

SHOWN_COMMANDS = 8
SHOWN_CHECKPOINTS = 200  # the newest
_WATCHED = (STATUS, JOB, SUBMISSION, CONFIG, METRICS, LOCK, CONTROL_INBOX, CONTROL_DONE, CHECKPOINTS)
_NAME = re.compile(RUN_NAME)

Signature = tuple[Stamp, ...]


class _Algorithm(FileModel):
    type: str | None = None


class _Loop(FileModel):
    steps: Whole | None = None
    budget_s: Number = None


class _Rollout(FileModel):
    workers: Whole | None = None
    min_workers: Whole = 1
    max_workers: Whole | None = None


class ConfigFacts(FileModel):
    """The parts of a run's settings that a server shows or checks."""

    name: str | None = None
    seed: Whole | None = None
    algorithm: _Algorithm = _Algorithm()
    loop: _Loop = _Loop()
    rollout: _Rollout = _Rollout()


class _File(FileModel):
    bytes: Whole = 0


class _Manifest(FileModel):
    files: dict[str, _File]


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    step: int
    time: float  # Unix
    bytes: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run directory at one moment."""

    path: Path
    signature: Signature
    status: RunStatus = RunStatus()
    job: JobRecord = JobRecord()
    submission: SubmissionRecord = SubmissionRecord()
    last_step: Figures = field(default_factory=dict)
    config: ConfigFacts = ConfigFacts()
    lock: LockHolder | None = None
    checkpoints: tuple[CheckpointRecord, ...] = ()
    commands: tuple[CommandRecord, ...] = ()
    config_time: float | None = None

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def submission_id(self) -> str | None:
        """Ray's id of the newest start: from the server's record or from the trainer's, whichever
        is newer.
        """
        asked, began = self.submission.created, self.job.started
        is_newer = began is None or (asked is not None and asked > began)
        return (is_newer and self.submission.submission_id) or self.job.submission_id

    @property
    def waits_for_trainer(self) -> bool:
        """Whether the run was submitted and its trainer has not started yet."""
        wanted = self.submission.submission_id
        return wanted is not None and wanted == self.submission_id and self.job.submission_id != wanted


def run_directories(root: Path, *, known: Container[str] = ()) -> list[Path]:
    """Return the children of `root` that are runs; names in `known` are not checked again. Links
    are not followed, so that nothing outside `root` is shown.
    """
    try:
        with os.scandir(root) as entries:
            names = [e.name for e in entries if _NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return [root / name for name in sorted(names) if name in known or is_run_directory(root / name)]


def has_run(root: Path, name: str) -> bool:
    """Whether `name` is a run of `root`, by the rules of `run_directories`."""
    return bool(_NAME.fullmatch(name)) and not (root / name).is_symlink() and is_run_directory(root / name)


def is_run_directory(path: Path) -> bool:
    """Whether a run started there; false for an unreadable directory, such as another user's."""
    return any(RunFile(path, name).stamp() != NO_FILE for name in (STATUS, CONFIG, JOB, SUBMISSION, METRICS))


def signature_of(path: Path) -> Signature:
    """Return a value that changes whenever a file of the record changes."""
    return tuple(RunFile(path, name).stamp() for name in _WATCHED)


def read_record(path: Path, previous: RunRecord | None = None) -> RunRecord:
    """Read the run directory `path`; unchanged parts are taken from `previous`."""
    signature = signature_of(path)
    known = dict(zip(_WATCHED, previous.signature, strict=True)) if previous else {}
    now = dict(zip(_WATCHED, signature, strict=True))

    def unchanged(*names: str) -> bool:
        return all(known[name] == now[name] for name in names)

    return RunRecord(
        path=path,
        signature=signature,
        status=read_status(path),
        job=read_job(path),
        submission=read_submission(path) or SubmissionRecord(),
        last_step=previous.last_step if previous and unchanged(METRICS) else last_step(path),
        config=previous.config if previous and unchanged(CONFIG, SUBMISSION) else _config_facts(path),
        lock=lock_holder(RunFile(path, LOCK)),
        checkpoints=_checkpoints(path, previous.checkpoints if previous and unchanged(CHECKPOINTS) else ()),
        commands=recent_commands(path, SHOWN_COMMANDS),
        config_time=now[CONFIG][1] / 1e9 or None,
    )


def settings_of(path: Path) -> dict[str, Any]:
    """Return the settings tree of a run, else its submitted settings; empty when neither is
    readable.
    """
    return _yaml(RunFile(path, CONFIG)) or _yaml(RunFile(path, SUBMITTED_CONFIG))


def _yaml(file: RunFile) -> dict[str, Any]:
    try:
        tree = read_yaml(file.read(), file.name)
    except (OSError, UserError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _config_facts(path: Path) -> ConfigFacts:
    try:
        return ConfigFacts.model_validate(settings_of(path))
    except ValidationError:
        return ConfigFacts()


def _checkpoints(path: Path, known: Sequence[CheckpointRecord]) -> tuple[CheckpointRecord, ...]:
    """Read the newest checkpoints; those of `known` are not read again. A file system may show a
    manifest later than its directory, so one that is missing is looked for at every call.
    """
    steps = sorted(step for name in names_in(path, CHECKPOINTS) if (step := step_of(name)) is not None)
    by_step = {record.step: record for record in known}
    found = (by_step.get(step) or _checkpoint(path, step) for step in steps[-SHOWN_CHECKPOINTS:])
    return tuple(record for record in found if record is not None)


def _checkpoint(path: Path, step: int) -> CheckpointRecord | None:
    file = RunFile(path, f"{CHECKPOINTS}/{step_name(step)}/{MANIFEST}")
    manifest = _Manifest.read(file)
    if manifest is None:
        return None
    size = sum(entry.bytes for entry in manifest.files.values())
    return CheckpointRecord(step, file.stamp()[1] / 1e9, size)
