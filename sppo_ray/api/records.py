"""What a run directory says, read defensively: a job may be writing it, may have died in the middle, may be of an older release.

`read_record` is the only reader of the small files. A file that is missing or damaged counts as not written.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sppo_ray.api.run_files import NO_FILE, RunFile, Stamp, names_in
from sppo_ray.api.schemas import RUN_NAME
from sppo_ray.trainer.metrics import METRICS
from sppo_ray.trainer.rundir import LOCK

SUBMISSION = "submission.json"  # written by the server before Ray is asked; what a run is until its trainer begins
SUBMITTED_CONFIG = "submitted.yaml"
OUTPUT = "output.log"  # what the entrypoint printed, for jobs that the server submitted
JOB = "job.json"
CONTROL_INBOX, CONTROL_DONE = "control/inbox", "control/done"
SHOWN_COMMANDS = 8
_TAIL_BYTES = 256 * 1024  # enough for the last line of metrics.jsonl
_WATCHED = (
    "status.json", JOB, SUBMISSION, "summary.json", "config.yaml", "metrics.jsonl", LOCK, CONTROL_INBOX, CONTROL_DONE,
    "checkpoints", "evaluations",
)  # fmt: skip
_NAME = re.compile(RUN_NAME)
_CHECKPOINT = re.compile(r"step-(\d{6,})")
_LOCK_HOLDER = re.compile(r"pid (\d{1,9}) on (\S+)")

Signature = tuple[Stamp, ...]


@dataclass(frozen=True, slots=True)
class ConfigFacts:
    """What a job's summary shows of its settings. Numbers are as the file has them: nobody has checked it."""

    name: str | None = None
    seed: int | None = None
    algorithm: str | None = None
    steps: Any = None
    budget_s: Any = None
    workers: Any = None


@dataclass(frozen=True, slots=True)
class LockHolder:
    pid: int
    host: str
    since: float  # Unix time


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run directory at one moment."""

    path: Path
    signature: Signature
    status: Mapping[str, Any] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    submission: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    last_step: Mapping[str, Any] = field(default_factory=dict)  # newest training row of metrics.jsonl
    config: ConfigFacts = ConfigFacts()
    lock: LockHolder | None = None
    checkpoints: tuple[Mapping[str, Any], ...] = ()
    commands: tuple[Mapping[str, Any], ...] = ()
    config_time: float | None = None

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def submission_id(self) -> str | None:
        """Ray's id of the newest start: the server's record is older or newer than the trainer's own, whichever started last."""
        submitted, own = _text(self.submission.get("submission_id")), _text(self.job.get("submission_id"))
        asked, began = number(self.submission.get("created")), number(self.job.get("started"))
        is_newer = began is None or (asked is not None and asked > began)
        return submitted if submitted and is_newer else own

    @property
    def waits_for_trainer(self) -> bool:
        """Submitted, and the trainer of that submission has not begun."""
        wanted = _text(self.submission.get("submission_id"))
        return wanted is not None and wanted == self.submission_id and self.job.get("submission_id") != wanted


def run_directories(root: Path, *, known: Container[str] = ()) -> list[Path]:
    """Children of `root` that are runs; those in `known` need not prove it again. Links are not followed, so that nothing outside
    `root` is ever shown."""
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
    """Whether a run began there. A directory that may not be looked into, such as another user's, is none."""
    return any(
        RunFile(path, name).stamp() != NO_FILE for name in ("status.json", "config.yaml", JOB, SUBMISSION, "metrics.jsonl")
    )


def signature_of(path: Path) -> Signature:
    """Changes whenever one of the files that make up a record does."""
    return tuple(RunFile(path, name).stamp() for name in _WATCHED)


def read_record(path: Path, previous: RunRecord | None = None) -> RunRecord:
    """Read the run directory `path`; `previous` spares reading what cannot have changed since."""
    signature = signature_of(path)
    known = dict(zip(_WATCHED, previous.signature, strict=True)) if previous else {}
    now = dict(zip(_WATCHED, signature, strict=True))

    def unchanged(name: str) -> bool:
        return previous is not None and known[name] == now[name]

    return RunRecord(
        path=path,
        signature=signature,
        status=json_object(RunFile(path, "status.json")),
        job=json_object(RunFile(path, JOB)),
        submission=json_object(RunFile(path, SUBMISSION)),
        summary=previous.summary if previous and unchanged("summary.json") else json_object(RunFile(path, "summary.json")),
        last_step=previous.last_step if previous and unchanged("metrics.jsonl") else last_training_row(path),
        config=previous.config if previous and unchanged("config.yaml") and unchanged(SUBMISSION) else _config_facts(path),
        lock=_lock_holder(RunFile(path, LOCK)),
        checkpoints=previous.checkpoints if previous and unchanged("checkpoints") else _checkpoints(path),
        commands=_commands(path),
        config_time=now["config.yaml"][1] / 1e9 or None,
    )


def last_training_row(path: Path) -> Mapping[str, Any]:
    """The newest row that a training step wrote (an evaluation's has no seconds/step), from the end of the file alone."""
    try:
        with RunFile(path, METRICS).open() as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]  # the last piece is empty, or torn
    except OSError:
        return {}
    for line in reversed(lines):
        row = parse_object(line) or {}
        if "seconds/step" in row or "reward/mean" in row:
            return row
    return {}


def _config_facts(path: Path) -> ConfigFacts:
    for name in ("config.yaml", SUBMITTED_CONFIG):
        tree = load_yaml(RunFile(path, name))
        if tree:
            return ConfigFacts(
                name=_text(tree.get("name")),
                seed=tree.get("seed") if isinstance(tree.get("seed"), int) else None,
                algorithm=_text(_child(tree, "algorithm").get("type")),
                steps=_child(tree, "loop").get("steps"),
                budget_s=_child(tree, "loop").get("budget_s"),
                workers=_child(tree, "rollout").get("workers"),
            )
    return ConfigFacts()


def load_yaml(file: RunFile) -> dict[str, Any]:
    """Empty where there is nothing to be read."""
    try:
        tree = yaml.load(file.read(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except Exception:  # boundary: on foreign text PyYAML's constructors raise whatever they stumble over, not YAMLError alone
        return {}
    return tree if isinstance(tree, dict) else {}


def json_object(file: RunFile) -> dict[str, Any]:
    """Empty where there is nothing to be read."""
    try:
        return parse_object(file.read()) or {}
    except OSError:
        return {}


def parse_object(data: bytes) -> dict[str, Any] | None:
    """None for what is no JSON object, or is nested without end."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _checkpoints(path: Path) -> tuple[Mapping[str, Any], ...]:
    found = []
    for name in names_in(path, "checkpoints"):
        match = _CHECKPOINT.fullmatch(name)
        manifest = RunFile(path, f"checkpoints/{name}/manifest.json")
        content = json_object(manifest) if match else {}
        if match and content:
            files = content.get("files")
            sizes = [_size_of(entry) for entry in files.values()] if isinstance(files, dict) else []
            found.append({"step": int(match[1]), "time": manifest.stamp()[1] / 1e9, "bytes": sum(sizes)})
    return tuple(sorted(found, key=lambda checkpoint: checkpoint["step"]))


def _size_of(entry: Any) -> int:
    size = entry.get("bytes", 0) if isinstance(entry, dict) else 0
    return size if isinstance(size, int) else 0


def _commands(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The newest commands with their outcome; those in the inbox are still waiting."""
    waiting = [(name, RunFile(path, f"{CONTROL_INBOX}/{name}")) for name in _command_names(path, CONTROL_INBOX)]
    done = [(name, RunFile(path, f"{CONTROL_DONE}/{name}")) for name in _command_names(path, CONTROL_DONE)[-SHOWN_COMMANDS:]]
    newest = sorted({**dict(waiting), **dict(done)}.items())[-SHOWN_COMMANDS:]
    return tuple(command for _, file in newest if (command := json_object(file)))


def _command_names(path: Path, folder: str) -> list[str]:
    return [name for name in names_in(path, folder) if name.endswith(".json") and not name.startswith(".")]


def _lock_holder(lock: RunFile) -> LockHolder | None:
    try:
        match = _LOCK_HOLDER.search(lock.read().decode(errors="replace"))
    except OSError:
        return None
    return LockHolder(int(match[1]), match[2], lock.stamp()[1] / 1e9) if match else None


def _child(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    child = tree.get(key)
    return child if isinstance(child, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def number(value: Any) -> float | None:
    """`value` as a float; None for what is no finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return found if math.isfinite(found) else None
