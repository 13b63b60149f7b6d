"""From what a run directory and Ray say to a `Job`: pure, so that every state is one table in a test.

submitted, trainer not begun   what Ray says of the submission: PENDING until it fails, stops or is forgotten
status.json says how it ended  SUCCEEDED, STOPPED, FAILED
alive                          RUNNING, PAUSED, STOPPING
none of these                  LOST: its process is gone without a word
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sppo_ray.api.records import RunRecord, number
from sppo_ray.api.schemas import Actor, Alert, Checkpoint, Command, Job, JobState, LastError, PendingWorker, Worker
from sppo_ray.redaction import redact

HEARTBEAT_LOST_S = 45.0  # a trainer writes one every 5 s; a slow shared disk may delay it
FORGOTTEN_S = 60.0  # a submission that Ray does not know after so long will not begin
_ENDED = {"finished": JobState.SUCCEEDED, "stopped": JobState.STOPPED, "failed": JobState.FAILED}
_RAY_STATES = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "STOPPED": JobState.STOPPED,
    "SUCCEEDED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
}
_STALENESS = "staleness/count_"
_ACTOR = re.compile(r"\b((?:rollout|learner|critic|reference|reward)(?:-\d+)?)\b")


@dataclass(frozen=True, slots=True)
class RayJob:
    """What Ray's job server says of one submission."""

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
class Surroundings:
    """What a run directory cannot know about itself."""

    now: float  # Unix time
    ray: Mapping[str, RayJob] | None  # by submission id; None = the job server does not answer
    process_alive: bool | None  # the writer, as seen from this host; None = it is, or was, on another


def job_of(record: RunRecord, around: Surroundings) -> Job:
    """The job behind a run directory."""
    submission_id = record.submission_id
    ray_job = (around.ray or {}).get(submission_id) if submission_id else None
    state = _state_before_start(record, ray_job, around) if record.waits_for_trainer else _state(record, ray_job, around)
    status, progress = record.status, _mapping(record.status.get("state"))
    if record.waits_for_trainer:
        phase = f"submitted, {ray_job.status.lower()}" if ray_job else "submitted"
    else:
        phase = _text(status.get("phase")) or "unknown"
    created = _first(record.submission.get("created"), record.job.get("started"), record.config_time, status.get("updated"))
    return Job(
        id=submission_id or record.run_id,
        run_id=record.run_id,
        name=_text(status.get("name")) or record.config.name or record.run_id,
        state=state,
        phase=redact(phase),
        stage=None if state.is_final else _text(status.get("stage")),
        step=_count(progress.get("step")),
        steps=_whole(status.get("steps")) or _whole(record.config.steps),
        budget_s=number(record.config.budget_s),
        eta_s=None if state.is_final else number(status.get("eta_s")),
        **_figures(record, progress),
        **_fleet(record, state),
        commands=[command for entry in record.commands if (command := _command(entry))],
        restarts=_count(progress.get("restarts")),
        checkpoints=[Checkpoint(**checkpoint) for checkpoint in record.checkpoints],
        alerts=_alerts(record),
        last_error=_last_error(record, state, ray_job),
        algorithm=_text(status.get("algorithm")) or record.config.algorithm,
        recipe=_recipe_name(_text(record.submission.get("recipe")) or "") or recipe_of(record.job.get("entrypoint")),
        seed=record.config.seed,
        created=number(created),
        started=number(record.job.get("started")),
        ended=_ended(record, state, ray_job),
        updated=number(_first(status.get("heartbeat"), status.get("updated"))),
        submission_id=submission_id,
        submitted_by=_text(record.submission.get("by")),
        metadata={str(key): redact(str(value)) for key, value in _mapping(record.submission.get("metadata")).items()},
    )


def job_of_ray(ray_job: RayJob) -> Job:
    """A training job that only Ray knows: its run directory is not there yet, or lies elsewhere."""
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
    """Whether a Ray job's command is a training run of ours."""
    return _train_arguments(entrypoint) is not None


def recipe_of(entrypoint: Any) -> str | None:
    """The recipe in `... sppo_ray train RECIPE ...`, given as a command line or as argv; of a file its name alone."""
    rest = _train_arguments(entrypoint)
    return next((_recipe_name(word) for word in rest or () if not word.startswith("-")), None)


def _recipe_name(recipe: str) -> str:
    """Where files lie on the server's machine is nobody's business."""
    return redact(recipe.rpartition("/")[2])


def _train_arguments(entrypoint: Any) -> list[str] | None:
    if isinstance(entrypoint, str):
        try:
            words = shlex.split(entrypoint)
            nested = next((word for word in words if " train " in word), None)  # bash -c '...', as the server submits it
            words = shlex.split(nested) if nested and "train" not in words else words
        except ValueError:  # an unbalanced quote: whatever it is, it is not one of ours
            return None
    else:
        words = [str(word) for word in entrypoint] if isinstance(entrypoint, list) else []
    for place, word in enumerate(words[:-1]):
        if "sppo" in word and words[place + 1] == "train":
            return words[place + 2 :]
    return None


def _state_before_start(record: RunRecord, ray_job: RayJob | None, around: Surroundings) -> JobState:
    if ray_job is not None:
        state = _RAY_STATES.get(ray_job.status, JobState.PENDING)
        # SUCCEEDED without a trainer's word: the entrypoint ended before it began.
        return {JobState.RUNNING: JobState.PENDING, JobState.SUCCEEDED: JobState.LOST}.get(state, state)
    if record.submission.get("error"):
        return JobState.FAILED
    asked = number(record.submission.get("created")) or 0.0
    forgotten = around.ray is not None and around.now - asked > FORGOTTEN_S
    return JobState.LOST if forgotten else JobState.PENDING


def _state(record: RunRecord, ray_job: RayJob | None, around: Surroundings) -> JobState:
    ended = _ENDED.get(str(record.status.get("phase")))
    if ended is JobState.FAILED and ray_job is not None and not ray_job.is_over:
        return JobState.RUNNING  # its supervisor starts it again, or gives up in a moment
    if ended is not None:
        return ended
    if not _is_alive(record, ray_job, around):
        if ray_job is not None and ray_job.status in ("FAILED", "STOPPED"):
            return _RAY_STATES[ray_job.status]
        return JobState.LOST
    asked_to_stop = any(command.get("kind") == "stop" and "outcome" not in command for command in record.commands)
    if record.status.get("stopping") is True or asked_to_stop:
        return JobState.STOPPING
    return JobState.PAUSED if record.status.get("paused") is True else JobState.RUNNING


def _is_alive(record: RunRecord, ray_job: RayJob | None, around: Surroundings) -> bool:
    """Ray's word counts most, then that of this host's kernel, then the heartbeat on the shared disk."""
    if ray_job is not None:
        return not ray_job.is_over
    if around.process_alive is not None:
        return around.process_alive
    beat = number(_first(record.status.get("heartbeat"), record.status.get("updated")))
    return beat is not None and around.now - beat < HEARTBEAT_LOST_S


def _ended(record: RunRecord, state: JobState, ray_job: RayJob | None) -> float | None:
    if not state.is_final:
        return None
    if ray_job is not None and ray_job.ended is not None:
        return ray_job.ended
    return number(_first(record.status.get("updated"), record.status.get("heartbeat")))


def _figures(record: RunRecord, progress: Mapping[str, Any]) -> dict[str, Any]:
    row = record.last_step
    tokens, seconds = number(row.get("response/tokens")), number(row.get("seconds/step"))
    ages = {name.removeprefix(_STALENESS): _count(value) for name, value in row.items() if name.startswith(_STALENESS)}
    return {
        "reward": number(row.get("reward/mean")),
        "accuracy": number(progress.get("final_accuracy")),
        "best_accuracy": number(progress.get("best_accuracy")),
        "tokens_per_second": tokens / seconds if tokens is not None and seconds else None,
        "policy_version": _whole(progress.get("policy_version")),
        "staleness": ages,
        "samples": _count(progress.get("samples")),
        "tokens": _count(progress.get("response_tokens")),
        "seconds": number(progress.get("seconds")) or 0.0,
    }


def _fleet(record: RunRecord, state: JobState) -> dict[str, Any]:
    status = record.status
    rows = status.get("fleet") if isinstance(status.get("fleet"), list) else []
    pending = status.get("pending") if isinstance(status.get("pending"), list) and not state.is_final else []
    return {
        "workers": [_worker(row) for row in rows if isinstance(row, dict)],
        "wanted_workers": _whole(status.get("wanted_workers")) or _whole(record.config.workers),
        "pending": [
            PendingWorker(
                worker=str(row.get("worker", "")), waiting_for=str(row.get("waiting_for", "")), since=number(row.get("since"))
            )
            for row in pending
            if isinstance(row, dict)
        ],
        "actors": [] if state.is_final else _actors(status),
    }


def _actors(status: Mapping[str, Any]) -> list[Actor]:
    rows = status.get("actors") if isinstance(status.get("actors"), list) else []
    return [
        Actor(
            name=str(row.get("name", "")),
            restarts=max(0, _count(row.get("incarnation")) - 1),
            node_ip=_text(row.get("node_ip")),
            pid=_whole(row.get("pid")),
        )
        for row in rows
        if isinstance(row, dict)
    ]


def _worker(row: Mapping[str, Any]) -> Worker:
    return Worker(
        name=str(row.get("name", "")),
        state=str(row.get("state", "")),
        version=_whole(row.get("version")),
        restarts=_count(row.get("restarts")),
        in_flight=_count(row.get("in_flight")),
        finished=_count(row.get("finished")),
    )


def _command(entry: Mapping[str, Any]) -> Command | None:
    if not isinstance(entry.get("id"), str) or not isinstance(entry.get("kind"), str):
        return None
    outcome = entry.get("outcome")
    return Command(
        id=entry["id"],
        kind=entry["kind"],
        by=_text(entry.get("by")),
        time=number(entry.get("time")),
        rollout_workers=_whole(entry.get("rollout_workers")),
        outcome=outcome if outcome in ("done", "refused") else "waiting",
        detail=_text(entry.get("detail")),
    )


def _alerts(record: RunRecord) -> list[Alert]:
    given = record.status.get("alerts")
    rows = given if isinstance(given, list) and not record.waits_for_trainer else []
    return [
        Alert(
            detector=str(row.get("detector", "")),
            step=_count(row.get("step")),
            since=_count(row.get("since")),
            action=str(row.get("action", "")),
            message=redact(str(row.get("message", ""))),
        )
        for row in rows
        if isinstance(row, dict)
    ]


def _last_error(record: RunRecord, state: JobState, ray_job: RayJob | None) -> LastError | None:
    given = record.status.get("last_error") if not record.waits_for_trainer else record.submission.get("error")
    if isinstance(given, dict):
        stack = _text(given.get("stack"))
        message = redact(str(given.get("message", "")))
        return LastError(actor=_text(given.get("actor")), message=message, stack=redact(stack) if stack else None)
    if isinstance(given, str) and given:
        actor = _ACTOR.search(given) if "WorkerFailure" in given else None
        return LastError(actor=actor[1] if actor else None, message=redact(given))
    if state is JobState.FAILED and ray_job is not None and ray_job.message:
        return LastError(message=redact(ray_job.message))
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _whole(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def _count(value: Any) -> int:
    return _whole(value) or 0


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
