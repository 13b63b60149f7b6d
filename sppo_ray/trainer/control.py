"""Commands to a run, as files in its directory: no port of the trainer is open, and what was asked stays on record.

    send() --> control/inbox/<time_ns>-<id>.json --> Inbox.receive (the trainer polls) --> applied or refused
                                                 --> control/done/<same name>, with "outcome" and "detail"

Who may write to the run directory may steer the run. This module is light: the REST server and the command line import it.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sppo_ray.errors import UserError
from sppo_ray.trainer.jsonlines import finite_json, write_atomically

Kind = Literal["scale", "pause", "resume", "checkpoint", "stop"]
Outcome = Literal["done", "refused"]
INBOX, DONE = "control/inbox", "control/done"
MAX_BYTES = 64 * 1024  # of one command
MAX_WORKERS = 1024  # that can be asked for; keeps a slip of the finger from flooding Ray, whatever rollout.max_workers says


@dataclass(frozen=True, slots=True)
class Command:
    """One thing asked of a run."""

    id: str
    kind: Kind
    by: str  # who asked, for the record
    time: float  # seconds since 1970, by the sender's clock
    rollout_workers: int | None = None  # scale: how many there shall be; None in all others

    def to_dict(self) -> dict[str, Any]:
        content = {"id": self.id, "kind": self.kind, "by": self.by, "time": self.time}
        return content if self.rollout_workers is None else content | {"rollout_workers": self.rollout_workers}


def send(run_dir: Path | str, kind: Kind, *, rollout_workers: int | None = None, by: str = "") -> str:
    """Put a command into the inbox of the run and return its id. It is applied when the trainer reads it: see `outcome_of`.

    Raises UserError for a command that no run could obey, and when `run_dir` is no directory or its inbox a link.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is no run directory: nobody would read the command")
    command = Command(secrets.token_hex(8), kind, by, time.time(), rollout_workers)
    _require_sound(command)
    inbox = run_dir / INBOX
    for folder in (inbox.parent, inbox):
        if folder.is_symlink():  # the sender may be a server with more rights than who made the link
            raise UserError(f"{folder} is a link: commands are only written below the run directory itself; remove the link")
    inbox.mkdir(parents=True, exist_ok=True)
    write_atomically(inbox / f"{time.time_ns()}-{command.id}.json", json.dumps(command.to_dict()) + "\n")
    return command.id


def outcome_of(run_dir: Path | str, command_id: str) -> dict[str, Any] | None:
    """The command with "outcome" ("done" or "refused"), "detail" and "finished"; None while it has none."""
    for path in (Path(run_dir) / DONE).glob("*.json"):
        if path.stem.partition("-")[2] == command_id:
            return json.loads(path.read_text(encoding="utf-8"))
    return None


class Inbox:
    """The trainer's end. Commands come in the order in which they were sent."""

    def __init__(self, run_dir: Path) -> None:
        self._inbox, self._done = run_dir / INBOX, run_dir / DONE
        self._inbox.mkdir(parents=True, exist_ok=True)
        self._done.mkdir(parents=True, exist_ok=True)
        self._under_way: dict[str, str] = {}  # command id -> file name

    def receive(self) -> list[Command]:
        """Commands that nobody has seen yet. What is no command is refused here. Raises OSError."""
        new = [path for path in sorted(self._inbox.glob("*.json")) if path.name not in self._under_way.values()]
        return [command for path in new if (command := self._read(path)) is not None]

    def answer(self, command: Command, outcome: Outcome, detail: str) -> None:
        self._conclude(self._under_way.pop(command.id), command.to_dict(), outcome, detail)

    def stop_since(self, job_start: float) -> bool:
        """Whether a stop lies here, or was answered at `job_start` or later: with yes or no, the run has not stopped."""
        answered = [_answer(path) for path in self._done.glob("*.json")]
        waiting = self.receive()
        self._under_way.clear()  # none of them is answered yet
        return any(command.kind == "stop" for command in waiting) or any(
            answer.get("kind") == "stop" and answer.get("finished", 0.0) >= job_start for answer in answered
        )

    def refuse_all(self, why: str) -> None:
        """Conclude whatever lies there, e.g. what was asked of an earlier incarnation of the run."""
        for command in self.receive():
            self.answer(command, "refused", why)

    def _read(self, path: Path) -> Command | None:
        """None when it was refused, or withdrawn since the folder was listed."""
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


def _answer(path: Path) -> dict[str, Any]:
    """Empty for what the inbox did not write."""
    try:
        content = json.loads(path.read_bytes())
        return {"kind": content["kind"], "finished": float(content["finished"])}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {}


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
            f"not a command ({type(error).__name__}: {error}): write commands with sppo_ray.trainer.control.send"
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
        raise UserError(f"scale needs rollout_workers, a whole number from 1 to {MAX_WORKERS}, and got {count!r}")
