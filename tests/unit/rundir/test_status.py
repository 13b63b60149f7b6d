"""What the trainer writes of a run and all others read: status.json and the small files beside it,
whole, old, foreign or damaged.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sppo_ray.config.loading import load_config
from sppo_ray.display.progress import SilentProgress
from sppo_ray.evaluation.scores import GradedResponse, evaluate
from sppo_ray.replay.records import Records
from sppo_ray.rollout.views import PendingView, WorkerView
from sppo_ray.rundir.commands import Inbox, recent_commands, send
from sppo_ray.rundir.evaluations import read_evaluations, served_evaluations, write_evaluation
from sppo_ray.rundir.files import SMALL_FILE, RunFile
from sppo_ray.rundir.heartbeat import EVERY_S, LOST_S
from sppo_ray.rundir.job import JobRecord, SubmissionRecord, read_job, read_submission, write_submission
from sppo_ray.rundir.layout import SUMMARY, RunDir, step_name, step_of
from sppo_ray.rundir.lock import LockHolder, lock_holder
from sppo_ray.rundir.metrics import is_training_step, last_step, read_metrics
from sppo_ray.rundir.record import read_record, settings_of
from sppo_ray.rundir.status import Alert, RunStatus, read_status, write_status
from sppo_ray.rundir.summary import Summary
from sppo_ray.trainer.checkpoint import TrainerState
from sppo_ray.trainer.recorder import Recorder
from tests.unit.trainer.test_loop import Run

FULL = {
    "name": "quickstart",
    "algorithm": "sppo",
    "steps": 60,
    "phase": "paused",
    "updated": 5.0,
    "heartbeat": 6.0,
    "stage": "pause",
    "last_error": {"actor": "learner-0", "message": "gone", "stack": "Traceback"},
    "actors": [
        {"name": "reward", "incarnation": 2, "pid": 7, "node_ip": "10.0.0.5", "node_id": "n", "since": 1.0}
    ],
    "state": {
        "step": 3, "policy_version": 3, "critic_version": 6, "samples": 12, "response_tokens": 40,
        "seconds": 9.5, "restarts": 1, "reward_errors": 0, "initial_accuracy": 0.4, "final_accuracy": 0.5,
        "best_accuracy": 0.5,
    },
    "alerts": [{"detector": "kl", "step": 3, "since": 2, "action": "pause", "message": "kl is 0.3"}],
    "latest": {"reward/mean": 0.5, "response/length_mean": None},
    "eta_s": None,
    "fleet": [
        {"name": "rollout-0", "state": "HEALTHY", "version": 3, "restarts": 0, "in_flight": 1, "finished": 4,
         "busy_seconds": 2.5}
    ],
    "wanted_workers": 2,
    "pending": [{"worker": "rollout-1", "waiting_for": "2 CPU", "since": 1.0}],
    "paused": True,
    "stopping": False,
    "control": {"id": "a", "kind": "pause", "outcome": "done", "detail": "pauses", "time": 4.0},
}  # fmt: skip
HUGE = "9" * 400  # no float and no integer of 64 bits holds it


def written(path: Path, text: str, name: str = "status.json") -> Path:
    path.mkdir(exist_ok=True)
    (path / name).write_text(text)
    return path


def test_what_is_written_is_read_key_for_key(tmp_path: Path) -> None:
    status = read_status(written(tmp_path / "a", json.dumps(FULL)))
    assert (status.phase, status.state.critic_version, status.actors[0].incarnation) == ("paused", 6, 2)
    again = RunDir(tmp_path / "b")
    write_status(again, status)
    assert json.loads(again.status.read_text()) == FULL
    assert read_status(again.path) == status


def test_a_recorder_writes_the_keys_that_it_knows(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    recorder = Recorder(run_dir, load_config("quickstart", ["--logging.tensorboard=false"]), SilentProgress())
    recorder.phase("preparing", last_error=None)
    begun = {"name", "algorithm", "steps", "phase", "updated", "heartbeat", "stage", "last_error"}
    assert json.loads(run_dir.status.read_text()).keys() == begun
    recorder.live(
        fleet=[WorkerView("rollout-0", "HEALTHY", 3, 0, 1, 4, 2.5)],
        pending=[PendingView("rollout-1", "2 CPU", 1.0)],
        actors=FULL["actors"],
    )
    state = TrainerState(3, 3, 6, 12, 40, 9.5, 1, 0, 0.4, 0.5, 0.5)
    latest = {"reward/mean": 0.5, "response/length_mean": float("nan")}
    alert = Alert(detector="kl", step=3, since=2, action="pause", message="kl is 0.3")
    recorder.phase("training", state, latest=latest, alerts=(alert,), eta_s=None)
    content = json.loads(run_dir.status.read_text())
    for name in ("fleet", "pending", "actors", "state", "latest", "alerts", "eta_s"):
        assert content[name] == FULL[name], name
    assert read_status(tmp_path).state.samples == 12
    with pytest.raises(TypeError, match="has no fleets"):
        recorder.live(fleets=[])
    recorder.close()


def test_an_old_file_with_fewer_keys_and_others_loads(tmp_path: Path) -> None:
    old = {
        "phase": "failed",
        "state": {"step": 3, "epoch": 1},
        "fleet": [{"name": "rollout-0", "state": "DEAD", "colour": "red"}],
        "last_error": "WorkerDied: rollout-0: gone",
        "seeds": [1],
    }
    status = read_status(written(tmp_path, json.dumps(old)))
    assert (status.phase, status.state.step, status.state.samples) == ("failed", 3, 0)
    assert (status.fleet[0].state, status.fleet[0].version) == ("DEAD", None)
    assert status.last_error is not None and status.last_error.message == "rollout-0: gone"


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "[]", "\0", "nonsense", '{"state": "none"}', '{"fleet": {"a": 1}}',
        '{"fleet": ["x"]}', '{"eta_s": "soon"}', '{"name": 4}', '{"last_error": ["x"]}',
        '{"alerts": {}}', '{"pending": 3}',
        '{"paused": 7}', f'{{"steps": {HUGE}}}', f'{{"state": {{"step": {HUGE}}}}}', '{"name": "\\ud800"}',
        '{"a":' * 100_000 + "1" + "}" * 100_000, f'{{"x": {"9" * 100_000}}}',
        '{"x": 1' + " " * SMALL_FILE + "}",
    ],
)  # fmt: skip
def test_a_damaged_file_counts_as_not_written(tmp_path: Path, text: str) -> None:
    assert read_status(written(tmp_path, text)) == RunStatus()


def test_so_does_one_that_is_missing_or_no_file_of_the_run(tmp_path: Path) -> None:
    assert read_status(tmp_path) == read_status(tmp_path / "none") == RunStatus()
    (tmp_path / "status.json").symlink_to(written(tmp_path / "other", json.dumps(FULL)) / "status.json")
    assert read_status(tmp_path) == RunStatus()
    (tmp_path / "status.json").unlink()
    os.mkfifo(tmp_path / "status.json")  # opened in the ordinary way, it would wait for a writer
    assert read_status(tmp_path) == RunStatus()


def test_what_is_not_finite_is_not_known(tmp_path: Path) -> None:
    text = (
        f'{{"eta_s": NaN, "heartbeat": Infinity, "updated": {HUGE}, "latest": {{"reward/mean": -Infinity}}}}'
    )
    status = read_status(written(tmp_path, text))
    assert (status.eta_s, status.heartbeat, status.updated) == (None, None, None)
    assert status.latest == {"reward/mean": None}


def test_a_heartbeat_is_lost_after_many_that_did_not_come() -> None:
    assert LOST_S > 10 * EVERY_S


# -------------------------------------------------------------------------------- other small files


@pytest.mark.parametrize("text", ["[]", "{", '{"submission_id": 5}', '{"created": []}', '{"metadata": 3}'])
def test_damaged_records_of_who_runs_it(tmp_path: Path, text: str) -> None:
    assert read_job(written(tmp_path, text, "job.json")) == JobRecord()
    assert read_submission(tmp_path) == SubmissionRecord()  # there is none
    assert read_submission(written(tmp_path, text, "submission.json")) is None
    record = read_record(tmp_path)
    assert (record.submission, record.submission_id) == (SubmissionRecord(), None)


def test_a_submission_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = SubmissionRecord(submission_id="s", recipe="quickstart", metadata={"ä": "1"}, created=1.0)
    write_submission(tmp_path, record)
    assert read_submission(tmp_path) == record
    assert "error" not in json.loads((tmp_path / "submission.json").read_text())


def test_a_summary_of_an_older_release(tmp_path: Path) -> None:
    old = {"name": "run", "status": "finished", "steps": 7, "seconds": 2.0, "colour": "red"}
    run = RunDir(written(tmp_path, json.dumps(old), SUMMARY))
    summary = Summary.load(RunFile(run.path, SUMMARY))
    assert (summary.steps, summary.peak_memory, run.finished_after) == (7, {}, 7)


def test_settings_that_no_one_can_read_hide_nothing_else(tmp_path: Path) -> None:
    written(tmp_path, json.dumps(FULL))
    written(tmp_path, "name: run\nseed: [1]\n", "config.yaml")
    record = read_record(tmp_path)
    assert (record.config.name, record.config.rollout.min_workers, record.status.steps) == (None, 1, 60)
    assert settings_of(tmp_path) == {"name": "run", "seed": [1]}


def test_who_holds_the_lock(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", resume=False)
    holder = lock_holder(RunFile(run.path, "run.lock"))
    assert isinstance(holder, LockHolder) and holder.pid == os.getpid()
    run.close()
    (run.path / "run.lock").write_text("somebody")
    assert lock_holder(RunFile(run.path, "run.lock")) is None


def test_the_newest_commands_with_their_outcome(tmp_path: Path) -> None:
    first, second = send(tmp_path, "pause", by="alice"), send(tmp_path, "scale", rollout_workers=3)
    inbox = Inbox(tmp_path)
    inbox.answer(inbox.receive()[0], "refused", "no")
    (tmp_path / "control" / "inbox" / "1-odd.json").write_text('{"kind": 1}')
    commands = recent_commands(tmp_path, 8)
    assert [(command.id, command.outcome, command.detail) for command in commands] == [
        (first, "refused", "no"),
        (second, None, None),
    ]
    assert recent_commands(tmp_path, 1) == commands[1:]


def test_evaluations_by_step(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (1_000_000, 20, 3):
        write_evaluation(run, step, {"step": step})
    assert [found["step"] for found in read_evaluations(tmp_path)] == [3, 20, 1_000_000]
    (run.evaluations / "step-000020.json").write_text("torn")
    assert [found["step"] for found in served_evaluations(tmp_path, most=1000)] == [3, 1_000_000]
    with pytest.raises(Exception, match="step-000020.json: not JSON"):
        read_evaluations(tmp_path)


def test_names_of_steps() -> None:
    assert [step_of(step_name(step) + ".json", ".json") for step in (0, 50, 1_234_567)] == [0, 50, 1_234_567]
    for name in ("step-50.json", "step-000050", "step-000050.json.tmp", "best.json"):
        assert step_of(name, ".json") is None


# -------------------------------------------------------------------------- what a training step is


def test_there_is_one_answer_to_what_a_training_step_is(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=3")
    state = run.train()
    recorder = Recorder(RunDir(run.path), run.config, SilentProgress())
    graded = [GradedResponse(f"h/{i}", "sum", 0, 1.0, "12", 3, False, "12") for i in range(4)]
    recorder.evaluation(state, evaluate(graded, k=1, step=3, policy_version=3))
    recorder.close()
    rows = read_metrics(run.path)
    assert [(row["step"], is_training_step(row)) for row in rows] == [
        (1, True),
        (2, True),
        (3, True),
        (3, False),
    ]
    # What only a step reports is in no other row.
    assert not {"reward/mean", "policy/version"} & rows[-1].keys()
    assert last_step(run.path)["policy/version"] == 3
    assert read_record(run.path).last_step == last_step(run.path)
    assert Records(run.path).step(3).metrics == rows[2]
