"""status.json: the state of a run. The trainer's recorder writes it with every heartbeat; all
others read it here.

Only keys that were set are written, so a missing key means that the run has not got that far.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import field_validator

from sppo_ray.rundir.commands import CommandRecord
from sppo_ray.rundir.files import FileModel, Number, RunFile, Whole
from sppo_ray.rundir.layout import STATUS, RunDir

_FORESEEN = re.compile(r"^(UserError|DiskFull|GuardrailStop|Reward\w+|Worker\w+): ")


class FleetRow(FileModel):
    """State of a rollout worker in the fleet."""

    name: str
    state: str
    version: Whole | None = None
    restarts: Whole = 0
    in_flight: Whole = 0
    finished: Whole = 0
    busy_seconds: Number = None


class PendingRow(FileModel):
    """A process that the cluster has no room for yet."""

    worker: str
    waiting_for: str
    since: Number = None
    """Unix time."""


class ActorRow(FileModel):
    """A process of the run: learner-0, critic-0, reference-0, reward, rollout-0."""

    name: str
    incarnation: Whole = 1
    pid: Whole | None = None
    """Null, like its node, until the process runs."""
    node_ip: str | None = None
    node_id: str | None = None
    since: Number = None
    """Time of the request (Unix time)."""


class Alert(FileModel):
    """A current alarm of a guardrail."""

    detector: str
    """The setting guardrails.<detector> is its limit."""
    step: Whole
    """Steps done when it was raised."""
    since: Whole
    """The first odd step."""
    action: str
    """Its effect on the run: warn, pause or stop."""
    message: str
    """The observation, its usual cause, and what to do."""


class ErrorRow(FileModel):
    """The error that ended the run."""

    actor: str | None = None
    message: str
    stack: str | None = None


class StateRow(FileModel):
    """The trainer's counters; their meanings: `TrainerState`."""

    step: Whole = 0
    policy_version: Whole | None = None
    critic_version: Whole | None = None
    samples: Whole = 0
    response_tokens: Whole = 0
    seconds: Number = 0.0
    restarts: Whole = 0
    reward_errors: Whole = 0
    initial_accuracy: Number = None
    final_accuracy: Number = None
    best_accuracy: Number = None


class RunStatus(FileModel):
    """The state of a run at one moment. All fields are optional, because a new run has few of
    them.
    """

    name: str | None = None
    algorithm: str | None = None
    steps: Whole | None = None
    """Total steps of the run (loop.steps)."""
    phase: str | None = None
    updated: Number = None
    """The last change of phase (Unix time)."""
    heartbeat: Number = None
    """Unix time; old with a live run.lock means that the process hangs or its disk does."""
    stage: str | None = None
    """What the loop waits for."""
    last_error: ErrorRow | None = None
    actors: tuple[ActorRow, ...] = ()
    state: StateRow = StateRow()
    alerts: tuple[Alert, ...] = ()
    latest: dict[str, Number] = {}
    """Some metrics of the newest step."""
    eta_s: Number = None
    fleet: tuple[FleetRow, ...] = ()
    wanted_workers: Whole | None = None
    pending: tuple[PendingRow, ...] = ()
    paused: bool = False
    """Requested, like `stopping`."""
    stopping: bool = False
    control: CommandRecord | None = None
    """The last answered command; its `time` is that of the answer."""

    @field_validator("last_error", mode="before")
    @classmethod
    def _error_of_an_old_run(cls, value: Any) -> Any:
        return {"message": value} if isinstance(value, str) else value

    @field_validator("last_error")
    @classmethod
    def _without_class(cls, error: ErrorRow | None) -> ErrorRow | None:
        """Older releases began the message with the class of the error."""
        if error is None:
            return None
        return error.model_copy(update={"message": _FORESEEN.sub("", error.message)})

    def but(self, **fields: Any) -> RunStatus:
        """Return a copy with changed `fields`; rows may be mappings or objects with the
        attributes.
        """
        unknown = fields.keys() - RunStatus.model_fields.keys()
        if unknown:
            raise TypeError(f"status.json has no {', '.join(sorted(unknown))}")
        return RunStatus(**{name: getattr(self, name) for name in self.model_fields_set} | fields)


def read_status(run_dir: Path | str) -> RunStatus:
    """Read status.json; empty when it is missing or damaged."""
    return RunStatus.read(RunFile(Path(run_dir), STATUS)) or RunStatus()


def write_status(run_dir: RunDir, status: RunStatus, *, durably: bool = True) -> None:
    """Replace status.json. Raises OSError."""
    run_dir.write_json(STATUS, status.model_dump(exclude_unset=True), durably=durably)
