"""The matrix: role x state x fault, the same on every machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

Role = Literal["rollout", "learner", "critic", "reward", "verifier", "reference", "driver", "node"]
State = Literal[
    "starting",
    "idle",
    "generating",
    "syncing",
    "updating",
    "draining",
    "checkpointing",
    "evaluating",
    "restoring",
    "paused",
]
Fault = Literal["SIGKILL", "SIGSTOP", "link cut"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault. `staleness` is the run's loop.max_staleness: 0 = synchronous, where the outcome is
    compared bit by bit.
    """

    role: Role
    state: State
    fault: Fault
    staleness: int = 0

    @property
    def name(self) -> str:
        return f"{self.role}/{self.state}/{self.fault}".replace(" ", "-") + (
            "/overlapped" if self.staleness else ""
        )

    @property
    def needs_new_run(self) -> bool:
        """Whether the state is only met while a run comes up. Engines also start in mid-run, when
        one is added.
        """
        return self.state == "starting" and self.role != "rollout"


def matrix() -> list[Cell]:
    """In the order in which they are run: an engine that was added by a cell is drained by the next
    one.
    """
    return [*_synchronous(), *_overlapped(), *_nodes()]


def selected(pattern: str) -> list[Cell]:
    """Cells whose name matches one of the comma-separated patterns, e.g.
    "rollout/*,*/syncing/*".
    """
    return [cell for cell in matrix() if any(fnmatch(cell.name, part.strip()) for part in pattern.split(","))]


def _synchronous() -> Iterable[Cell]:
    for fault in ("SIGKILL", "SIGSTOP"):
        for state in (
            "starting",
            "draining",
            "idle",
            "generating",
            "syncing",
            "evaluating",
            "checkpointing",
            "paused",
            "restoring",
        ):
            yield Cell("rollout", state, fault)
    for role in ("learner", "critic"):
        for state in (
            "starting",
            "generating",
            "updating",
            "syncing",
            "evaluating",
            "checkpointing",
            "restoring",
            "paused",
        ):
            yield Cell(role, state, "SIGKILL")
        yield Cell(role, "updating", "SIGSTOP")
        yield Cell(role, "generating", "SIGSTOP")
    for state in ("starting", "generating", "updating", "evaluating", "restoring", "paused"):
        yield Cell("reward", state, "SIGKILL")
    yield Cell("reward", "generating", "SIGSTOP")
    for state in ("generating", "updating", "evaluating"):
        yield Cell("verifier", state, "SIGKILL")
        yield Cell("verifier", state, "SIGSTOP")
    for state in ("generating", "updating"):
        yield Cell("reference", state, "SIGKILL")
    yield Cell("reference", "updating", "SIGSTOP")
    for state in (
        "starting",
        "generating",
        "updating",
        "syncing",
        "evaluating",
        "checkpointing",
        "restoring",
        "paused",
    ):
        yield Cell("driver", state, "SIGKILL")
    yield Cell("driver", "generating", "SIGSTOP")  # for a while: nobody else can end it


def _overlapped() -> Iterable[Cell]:
    for fault in ("SIGKILL", "SIGSTOP"):
        for state in ("generating", "syncing"):
            yield Cell("rollout", state, fault, staleness=1)
    for role in ("learner", "critic", "reward", "driver"):
        yield Cell(role, "generating", "SIGKILL", staleness=1)
    yield Cell("learner", "updating", "SIGKILL", staleness=1)


def _nodes() -> Iterable[Cell]:
    """A worker host of three: its raylet is killed, or its link is cut for longer than Ray
    waits.
    """
    for state in ("generating", "updating", "syncing"):
        yield Cell("node", state, "SIGKILL")
    for state in ("generating", "syncing"):
        yield Cell("node", state, "link cut")
