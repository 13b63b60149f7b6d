"""Compute a `Job` from its run directory and Ray's data, by pure functions.

submitted, trainer not begun   what Ray says of the submission: PENDING until it fails, stops or is
                               forgotten
status.json says how it ended  SUCCEEDED, STOPPED, FAILED
alive                          RUNNING, PAUSED, STOPPING
none of these                  LOST: its process is gone without a final status
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sppo_ray.api.schemas import Actor, Alert, Command, Job, JobState, LastError
from sppo_ray.redaction import redact
from sppo_ray.rundir.commands import CommandRecord
from sppo_ray.rundir.heartbeat import LOST_S
from sppo_ray.rundir.record import RunRecord
from sppo_ray.rundir.status import ActorRow

FORGOTTEN_S = 60.0  # a submission unknown to Ray after this time will not start
_ENDED = {"finished": JobState.SUCCEEDED, "stopped": JobState.STOPPED, "failed": JobState.FAILED}
_RAY_STATES = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "STOPPED": JobState.STOPPED,
    "SUCCEEDED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
}
_STALENESS = "staleness/count_"


@dataclass(frozen=True, slots=True)
class RayJob:
    """Ray's data on one submission."""

    submission_id: str
    status: str  # PENDING | RUNNING | STOPPED | SUCCEEDED | FAILED
    entrypoint: str
    message: str | None
    started: float | None  # Unix time
    ended: float | None
    metadata: Mapping[str, str]

    @property
    def is_over(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


@dataclass(frozen=True, slots=True)
class JobContext:
    """Information that is not in the run directory."""

    now: float  # Unix time
    ray: Mapping[str, RayJob] | None  # by submission id; None = the job server does not answer
    # whether the writer is alive; None = it is on another host
    process_alive: bool | None


def job_of(record: RunRecord, around: JobContext) -> Job:
    """Return the job of a run directory."""
    status, submission, config = record.status, record.submission, record.config
    submission_id = record.submission_id
    ray_job = (around.ray or {}).get(submission_id) if submission_id else None
    state = (
        _state_before_start(record, ray_job, around)
        if record.waits_for_trainer
        else _state(record, ray_job, around)
    )
    if record.waits_for_trainer:
        phase = f"submitted, {ray_job.status.lower()}" if ray_job else "submitted"
    else:
        phase = status.phase or "unknown"
    return Job(
        id=submission_id or record.run_id,
        run_id=record.run_id,
        name=status.name or config.name or record.run_id,
        state=state,
        phase=redact(phase),
        stage=None if state.is_final else status.stage or None,
        step=status.state.step,
        steps=status.steps or config.loop.steps,
        budget_s=config.loop.budget_s,
        eta_s=None if state.is_final or state is JobState.PAUSED else status.eta_s,
        **_figures(record),
        workers=status.fleet,
        wanted_workers=status.wanted_workers or config.rollout.workers,
        pending=[] if state.is_final else status.pending,
        actors=[] if state.is_final else [_actor(row) for row in status.actors],
        commands=[_command(command) for command in record.commands],
        restarts=status.state.restarts,
        checkpoints=record.checkpoints,
        alerts=_alerts(record),
        last_error=_last_error(record, state, ray_job),
        algorithm=status.algorithm or config.algorithm.type,
        recipe=_recipe_name(submission.recipe or "") or recipe_of(record.job.entrypoint),
        seed=config.seed,
        created=_first(submission.created, record.job.started, record.config_time, status.updated),
        started=record.job.started,
        ended=_ended(record, state, ray_job),
        updated=_first(status.heartbeat, status.updated),
        submission_id=submission_id,
        submitted_by=submission.by or None,
        metadata={key: redact(value) for key, value in submission.metadata.items()},
    )


def job_of_ray(ray_job: RayJob) -> Job:
    """Return a training job that only Ray knows: its run directory does not exist yet, or is
    elsewhere.
    """
    state = _RAY_STATES.get(ray_job.status, JobState.PENDING)
    failed = state is JobState.FAILED
    return Job(
        id=ray_job.submission_id,
        name=ray_job.submission_id,
        state=state,
        phase="no run directory below --runs" if state.is_final else "starting",
        last_error=LastError(message=redact(ray_job.message)) if failed and ray_job.message else None,
        recipe=recipe_of(ray_job.entrypoint),
        created=ray_job.started,
        started=ray_job.started,
        ended=ray_job.ended,
        submission_id=ray_job.submission_id,
        metadata={key: redact(value) for key, value in ray_job.metadata.items()},
    )


def is_training(entrypoint: str) -> bool:
    """Whether a Ray job's command is `sppo_ray train`."""
    return _train_arguments(entrypoint) is not None


def recipe_of(entrypoint: str | Sequence[str]) -> str | None:
    """Return the recipe in `... sppo_ray train RECIPE ...`, a command line or argv; of a file only
    the name.
    """
    rest = _train_arguments(entrypoint)
    return next((_recipe_name(word) for word in rest or () if not word.startswith("-")), None)


def _recipe_name(recipe: str) -> str:
    """Return the file name only, so that paths of the server's machine are not shown."""
    return redact(recipe.rpartition("/")[2])


def _train_arguments(entrypoint: str | Sequence[str]) -> Sequence[str] | None:
    if isinstance(entrypoint, str):
        try:
            words = shlex.split(entrypoint)
            # bash -c '...', as the server submits it
            nested = next((word for word in words if " train " in word), None)
            words = shlex.split(nested) if nested and "train" not in words else words
        except ValueError:  # an unbalanced quote: not a command of this package
            return None
    else:
        words = list(entrypoint)
    for place, word in enumerate(words[:-1]):
        if "sppo" in word and words[place + 1] == "train":
            return words[place + 2 :]
    return None


def _state_before_start(record: RunRecord, ray_job: RayJob | None, around: JobContext) -> JobState:
    if ray_job is not None:
        state = _RAY_STATES.get(ray_job.status, JobState.PENDING)
        # SUCCEEDED without a status of the trainer: the entrypoint ended before the trainer
        # started.
        return {JobState.RUNNING: JobState.PENDING, JobState.SUCCEEDED: JobState.LOST}.get(state, state)
    if record.submission.error:
        return JobState.FAILED
    forgotten = around.ray is not None and around.now - (record.submission.created or 0.0) > FORGOTTEN_S
    return JobState.LOST if forgotten else JobState.PENDING


def _state(record: RunRecord, ray_job: RayJob | None, around: JobContext) -> JobState:
    ended = _ENDED.get(record.status.phase or "")
    if ended is JobState.FAILED and ray_job is not None and not ray_job.is_over:
        return JobState.RUNNING  # its supervisor restarts it, or gives up soon
    if ended is not None:
        return ended
    if not _is_alive(record, ray_job, around):
        if ray_job is not None and ray_job.status in ("FAILED", "STOPPED"):
            return _RAY_STATES[ray_job.status]
        return JobState.LOST
    asked_to_stop = any(command.kind == "stop" and command.outcome is None for command in record.commands)
    if record.status.stopping or asked_to_stop:
        return JobState.STOPPING
    return JobState.PAUSED if record.status.paused else JobState.RUNNING


def _is_alive(record: RunRecord, ray_job: RayJob | None, around: JobContext) -> bool:
    """Whether the job is alive: by Ray, else by this host's kernel, else by the heartbeat on the
    shared disk.
    """
    if ray_job is not None:
        return not ray_job.is_over
    if around.process_alive is not None:
        return around.process_alive
    beat = _first(record.status.heartbeat, record.status.updated)
    return beat is not None and around.now - beat < LOST_S


def _ended(record: RunRecord, state: JobState, ray_job: RayJob | None) -> float | None:
    if not state.is_final:
        return None
    if ray_job is not None and ray_job.ended is not None:
        return ray_job.ended
    return _first(record.status.updated, record.status.heartbeat)


def _figures(record: RunRecord) -> dict[str, Any]:
    row, state = record.last_step, record.status.state
    tokens, seconds = row.get("response/tokens"), row.get("seconds/step")
    ages = {
        name.removeprefix(_STALENESS): int(value)
        for name, value in row.items()
        if name.startswith(_STALENESS)
    }
    return {
        "reward": row.get("reward/mean"),
        "accuracy": state.final_accuracy,
        "best_accuracy": state.best_accuracy,
        "tokens_per_second": tokens / seconds if tokens is not None and seconds else None,
        "policy_version": state.policy_version,
        "staleness": ages,
        "samples": state.samples,
        "tokens": state.response_tokens,
        "seconds": state.seconds or 0.0,
    }


def _actor(row: ActorRow) -> Actor:
    return Actor(
        name=row.name, restarts=max(0, row.incarnation - 1), node_ip=row.node_ip or None, pid=row.pid
    )


def _command(command: CommandRecord) -> Command:
    given = command.model_dump(exclude={"finished"})
    return Command(
        **given
        | {
            "by": command.by or None,
            "outcome": command.outcome or "waiting",
            "detail": command.detail or None,
        }
    )


def _alerts(record: RunRecord) -> list[Alert]:
    rows = () if record.waits_for_trainer else record.status.alerts
    return [Alert(**row.model_dump() | {"message": redact(row.message)}) for row in rows]


def _last_error(record: RunRecord, state: JobState, ray_job: RayJob | None) -> LastError | None:
    error = record.status.last_error
    if error is not None and not record.waits_for_trainer:
        stack = redact(error.stack) if error.stack else None
        return LastError(actor=error.actor or None, message=redact(error.message), stack=stack)
    message = record.submission.error if record.waits_for_trainer else None
    if not message and state is JobState.FAILED and ray_job is not None:
        message = ray_job.message
    return LastError(message=redact(message)) if message else None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
