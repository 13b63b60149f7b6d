"""Commands to a run, as files in its directory: the trainer opens no port, and commands stay on
record.

    send() --> control/inbox/<time_ns>-<id>.json --> Inbox.receive (the trainer polls)
        --> applied or refused

                                                     --> control/done/<same name>, with "outcome" and "detail"

Write access to the run directory allows steering the run. This module imports little, because the
REST server and the command line use it.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sppo_ray.errors import UserError
from sppo_ray.rundir.files import FileModel, Number, RunFile, Whole, names_in
from sppo_ray.rundir.jsonlines import finite_json, write_atomically
from sppo_ray.rundir.layout import CONTROL_DONE, CONTROL_INBOX

Kind = Literal["scale", "pause", "resume", "checkpoint", "stop"]
Outcome = Literal["done", "refused"]
MAX_BYTES = 64 * 1024  # bytes of one command
# limit of one scale command, so that a typo cannot flood Ray even without rollout.max_workers
MAX_WORKERS = 1024


@dataclass(frozen=True, slots=True)
class Command:
    """A command to a run."""

    id: str
    kind: Kind
    by: str  # the sender, for the record
    time: float  # seconds since 1970, by the sender's clock
    rollout_workers: int | None = None  # scale: wanted number of workers; None in other commands

    def to_dict(self) -> dict[str, Any]:
        content = {"id": self.id, "kind": self.kind, "by": self.by, "time": self.time}
        return (
            content if self.rollout_workers is None else content | {"rollout_workers": self.rollout_workers}
        )


class CommandRecord(FileModel):
    """A command with its outcome, for display."""

    id: str
    kind: str
    by: str | None = None
    time: Number = None
    rollout_workers: Whole | None = None
    outcome: Outcome | None = None
    """None = pending."""
    detail: str | None = None
    finished: Number = None
    """Unix time."""


def recent_commands(run_dir: Path, most: int) -> tuple[CommandRecord, ...]:
    """Return the newest commands, oldest first; an answered command appears once."""
    places = {
        name: f"{folder}/{name}"
        for folder in (CONTROL_INBOX, CONTROL_DONE)
        for name in _names(run_dir, folder)
    }
    newest = [RunFile(run_dir, place) for _, place in sorted(places.items())[-most:]]
    return tuple(command for file in newest if (command := CommandRecord.read(file)) is not None)


def _names(run_dir: Path, folder: str) -> list[str]:
    return [name for name in names_in(run_dir, folder) if name.endswith(".json") and not name.startswith(".")]


def send(run_dir: Path | str, kind: Kind, *, rollout_workers: int | None = None, by: str = "") -> str:
    """Put a command into the run's inbox and return its id; `outcome_of` gives its result later.
    Raises UserError for an invalid command, and when `run_dir` is not a directory or its inbox is a
    link.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a run directory: nobody would read the command")
    command = Command(secrets.token_hex(8), kind, by, time.time(), rollout_workers)
    _require_sound(command)
    inbox = run_dir / CONTROL_INBOX
    for folder in (inbox.parent, inbox):
        # the sender may be a server with more rights than the owner of the link
        if folder.is_symlink():
            raise UserError(
                f"{folder} is a link: commands are only written below the run directory itself; remove the "
                "link"
            )
    inbox.mkdir(parents=True, exist_ok=True)
    write_atomically(inbox / f"{time.time_ns()}-{command.id}.json", json.dumps(command.to_dict()) + "\n")
    return command.id


def outcome_of(run_dir: Path | str, command_id: str) -> dict[str, Any] | None:
    """Return the command with "outcome" ("done" or "refused"), "detail" and "finished"; None while
    pending.
    """
    for path in (Path(run_dir) / CONTROL_DONE).glob("*.json"):
        if path.stem.partition("-")[2] == command_id:
            return json.loads(path.read_text(encoding="utf-8"))
    return None


class Inbox:
    """The trainer's side. Commands arrive in the order of sending."""

    def __init__(self, run_dir: Path) -> None:
        self._inbox, self._done = run_dir / CONTROL_INBOX, run_dir / CONTROL_DONE
        self._inbox.mkdir(parents=True, exist_ok=True)
        self._done.mkdir(parents=True, exist_ok=True)
        self._under_way: dict[str, str] = {}  # command id -> file name

    def receive(self) -> list[Command]:
        """Return new commands. Invalid files are refused here. Raises OSError."""
        new = [
            path for path in sorted(self._inbox.glob("*.json")) if path.name not in self._under_way.values()
        ]
        return [command for path in new if (command := self._read(path)) is not None]

    def answer(self, command: Command, outcome: Outcome, detail: str) -> None:
        self._conclude(self._under_way.pop(command.id), command.to_dict(), outcome, detail)

    def stop_since(self, job_start: float) -> bool:
        """Whether a stop is pending, or was answered at `job_start` or later; the answer does not
        matter, because the run has not stopped.
        """
        answered = [CommandRecord.read(RunFile(self._done, path.name)) for path in self._done.glob("*.json")]
        waiting = self.receive()
        self._under_way.clear()  # none is answered yet
        return any(command.kind == "stop" for command in waiting) or any(
            answer is not None and answer.kind == "stop" and (answer.finished or 0.0) >= job_start
            for answer in answered
        )

    def refuse_all(self, why: str) -> None:
        """Refuse all pending commands, e.g. those sent to an earlier incarnation of the run."""
        for command in self.receive():
            self.answer(command, "refused", why)

    def _read(self, path: Path) -> Command | None:
        """Read one command; None when it was refused, or removed since the folder was listed."""
        try:
            with path.open("rb") as file:
                text = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        try:
            command = _parse(text)
        except UserError as error:
            self._conclude(path.name, {"kind": "unknown"}, "refused", str(error))
            return None
        self._under_way[command.id] = path.name
        return command

    def _conclude(self, name: str, content: Mapping[str, Any], outcome: Outcome, detail: str) -> None:
        answered = {**content, "outcome": outcome, "detail": detail, "finished": time.time()}
        write_atomically(self._done / name, json.dumps(finite_json(answered)) + "\n")
        (self._inbox / name).unlink(missing_ok=True)


def _parse(text: bytes) -> Command:
    if len(text) > MAX_BYTES:
        raise UserError(f"a command has at most {MAX_BYTES} bytes")
    try:
        content = json.loads(text)
        command = Command(
            id=str(content["id"]),
            kind=content["kind"],
            by=str(content.get("by", "")),
            time=float(content["time"]),
            rollout_workers=content.get("rollout_workers"),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"not a command ({type(error).__name__}: {error}): write commands with "
            "sppo_ray.rundir.commands.send"
        ) from None
    _require_sound(command)
    return command


def _require_sound(command: Command) -> None:
    if command.kind not in get_args(Kind):
        raise UserError(f"unknown command {command.kind!r}: there are {', '.join(get_args(Kind))}")
    count = command.rollout_workers
    if command.kind != "scale":
        if count is not None:
            raise UserError(f"{command.kind} takes no rollout_workers: they belong to scale")
    elif not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_WORKERS:
        raise UserError(
            f"scale needs rollout_workers, a whole number from 1 to {MAX_WORKERS}, and got {count!r}"
        )
