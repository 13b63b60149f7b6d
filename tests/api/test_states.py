"""A job's state from run directory, host and Ray, as one table."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppo_ray.api.jobs import FORGOTTEN_S, JobContext, RayJob, is_training, job_of, job_of_ray, recipe_of
from sppo_ray.api.schemas import JobState
from sppo_ray.rundir.commands import CommandRecord
from sppo_ray.rundir.heartbeat import LOST_S
from sppo_ray.rundir.job import JobRecord, SubmissionRecord
from sppo_ray.rundir.record import RunRecord
from sppo_ray.rundir.status import RunStatus

NOW = 1_000_000.0


def ray_job(status: str, submission_id: str = "s1") -> RayJob:
    return RayJob(
        submission_id,
        status,
        "python -m sppo_ray train quickstart",
        f"job is {status}",
        NOW - 50,
        NOW - 5,
        {},
    )


def record(
    phase: str | None,
    *,
    beat_age: float = 1.0,
    submission: dict | None = None,
    job: dict | None = None,
    **more,
) -> RunRecord:
    status = {} if phase is None else {"phase": phase, "heartbeat": NOW - beat_age, **more.pop("status", {})}
    return RunRecord(
        Path("/runs/first"),
        (),
        status=RunStatus.model_validate(status),
        job=JobRecord.model_validate(job or {}),
        submission=SubmissionRecord.model_validate(submission or {}),
        commands=tuple(CommandRecord.model_validate(command) for command in more.pop("commands", ())),
        **more,
    )


STOP = {"id": "a", "kind": "stop", "time": NOW - 1}
SUBMITTED = {"submission_id": "s1", "created": NOW - 10}
BEGUN = {"submission_id": "s1", "started": NOW - 5}


@pytest.mark.parametrize(
    ("found", "ray", "process_alive", "state"),
    [
        # The trainer's word on how it ended is final.
        (record("finished"), None, None, "SUCCEEDED"),
        (record("stopped"), None, None, "STOPPED"),
        (record("failed"), None, None, "FAILED"),
        # Unless it failed and its supervisor has not given up on it.
        (record("failed", job=BEGUN), {"s1": ray_job("RUNNING")}, None, "RUNNING"),
        (record("failed", job=BEGUN), {"s1": ray_job("FAILED")}, None, "FAILED"),
        # Alive: Ray's word, then this host's, then the heartbeat.
        (record("training", job=BEGUN, beat_age=500), {"s1": ray_job("RUNNING")}, None, "RUNNING"),
        (record("training", job=BEGUN), {"s1": ray_job("FAILED")}, True, "FAILED"),
        (record("training", job=BEGUN), {"s1": ray_job("STOPPED")}, None, "STOPPED"),
        (record("training", job=BEGUN), {"s1": ray_job("SUCCEEDED")}, None, "LOST"),
        (record("training", beat_age=500), None, True, "RUNNING"),
        (record("training", beat_age=1), None, False, "LOST"),
        (record("training", beat_age=LOST_S - 1), None, None, "RUNNING"),
        (record("training", beat_age=LOST_S + 1), None, None, "LOST"),
        # The head restarted and knows nothing: the heartbeat decides.
        (record("training", job=BEGUN, beat_age=500), {}, None, "LOST"),
        (record("training", job=BEGUN, beat_age=1), {}, None, "RUNNING"),
        (record("paused", status={"paused": True}), None, True, "PAUSED"),
        (record("training", status={"stopping": True}), None, True, "STOPPING"),
        (record("training", commands=(STOP,)), None, True, "STOPPING"),
        (record("training", commands=({**STOP, "outcome": "refused"},)), None, True, "RUNNING"),
        # Submitted, the trainer has not begun.
        (record(None, submission=SUBMITTED), {"s1": ray_job("PENDING")}, None, "PENDING"),
        (record(None, submission=SUBMITTED), {"s1": ray_job("RUNNING")}, None, "PENDING"),
        (record(None, submission=SUBMITTED), {"s1": ray_job("FAILED")}, None, "FAILED"),
        (record(None, submission=SUBMITTED), None, None, "PENDING"),
        (record(None, submission=SUBMITTED), {}, None, "PENDING"),
        (record(None, submission={**SUBMITTED, "created": NOW - FORGOTTEN_S - 1}), {}, None, "LOST"),
        (record(None, submission={**SUBMITTED, "created": NOW - FORGOTTEN_S - 1}), None, None, "PENDING"),
        (record(None, submission={**SUBMITTED, "error": "refused"}), {}, None, "FAILED"),
        # Continued: the old end no longer counts.
        (
            record(
                "stopped", job={**BEGUN, "submission_id": "s0"}, submission={**SUBMITTED, "created": NOW - 1}
            ),
            None,
            None,
            "PENDING",
        ),
        (
            record("training", job={**BEGUN, "submission_id": "s1"}, submission=SUBMITTED),
            None,
            True,
            "RUNNING",
        ),
    ],
)
def test_state(found: RunRecord, ray: dict | None, process_alive: bool | None, state: str) -> None:
    assert job_of(found, JobContext(NOW, ray, process_alive)).state == state


def test_the_id_is_rays_of_the_newest_start() -> None:
    around = JobContext(NOW, None, True)
    assert job_of(record("training"), around).id == "first"
    assert job_of(record("training", job=BEGUN), around).id == "s1"
    newer = {"submission_id": "s2", "created": NOW - 1}
    assert job_of(record("training", job=BEGUN, submission=newer), around).id == "s2"
    assert job_of(record("training", job=BEGUN, submission={**newer, "created": NOW - 9}), around).id == "s1"


def test_alerts_are_told_without_secrets() -> None:
    alert = {
        "detector": "kl",
        "step": 12,
        "since": 10,
        "action": "pause",
        "message": "kl is 0.3; HF_TOKEN=hf_abcdefghijklmnop",
    }
    job = job_of(record("paused", status={"paused": True, "alerts": [alert]}), JobContext(NOW, None, True))
    assert job.state is JobState.PAUSED and len(job.alerts) == 1
    told = job.alerts[0]
    assert (told.detector, told.step, told.since, told.action) == ("kl", 12, 10, "pause")
    assert "0.3" in told.message and "hf_abc" not in told.message


def test_every_process_of_a_job_and_how_often_it_was_made_anew() -> None:
    rows = [
        {
            "name": "learner-0",
            "incarnation": 3,
            "pid": 17,
            "node_ip": "10.0.0.5",
            "node_id": "n",
            "since": NOW,
        },
        {"name": "reward", "incarnation": 1, "pid": None, "node_ip": None, "node_id": None, "since": NOW},
    ]
    job = job_of(record("training", status={"actors": rows}), JobContext(NOW, None, True))
    told = [(actor.name, actor.restarts, actor.pid, actor.node_ip) for actor in job.actors]
    assert told == [("learner-0", 2, 17, "10.0.0.5"), ("reward", 0, None, None)]
    assert job_of(record("finished", status={"actors": rows}), JobContext(NOW, None, None)).actors == []


def test_a_paused_job_has_no_time_left() -> None:
    for paused, left in ((False, 3222.0), (True, None)):
        found = record("training", status={"eta_s": 3222.0, "paused": paused})
        assert job_of(found, JobContext(NOW, None, True)).eta_s == left


def test_the_last_error_names_actor_and_stack() -> None:
    error = {
        "actor": "rollout-1",
        "message": "WorkerFailure: rollout-1 died",
        "stack": "Traceback ... HF_TOKEN=hf_abcdefghijklmnop",
    }
    job = job_of(record("failed", status={"last_error": error}), JobContext(NOW, None, None))
    assert job.last_error is not None
    # an older release began the message with the class of the error
    assert (job.last_error.actor, job.last_error.message) == ("rollout-1", "rollout-1 died")
    assert "hf_abc" not in (job.last_error.stack or "")


@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        ("python -m sppo_ray train quickstart --run-dir x", "quickstart"),
        ("sppo-ray train --seed=1 paper-7b", "paper-7b"),
        ("/opt/venv/bin/sppo-ray train my.yaml", "my.yaml"),
        (
            "exec bash -c 'exec python -m sppo_ray train /runs/a/submitted.yaml > >(tee x) 2>&1'",
            "submitted.yaml",
        ),
        (["/x/sppo_ray/__main__.py", "train", "quickstart"], "quickstart"),
        ("python train.py", None),
        ("python -m sppo_ray eval m", None),
        ("echo 'unbalanced", None),
        ("", None),
    ],
)
def test_training_jobs_are_known_by_their_command(command: str | list[str], recipe: str | None) -> None:
    assert recipe_of(command) == recipe
    if isinstance(command, str):
        assert is_training(command) == (recipe is not None)


def test_a_job_that_only_ray_knows() -> None:
    job = job_of_ray(ray_job("FAILED"))
    assert (job.id, job.run_id, job.state, job.recipe) == ("s1", None, JobState.FAILED, "quickstart")
    assert job.last_error is not None and job.last_error.message == "job is FAILED"
