"""A stop that was requested while the driver was down is applied at the next start."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sppo_ray.config.loading import dump_config, load_config
from sppo_ray.launch import train as train_module
from sppo_ray.launch.job import RAY_JOB_CONFIG, SUPERVISOR, job_start, write_job
from sppo_ray.launch.supervisor import Supervisor
from sppo_ray.launch.train import train
from sppo_ray.rundir.commands import Inbox, outcome_of, send
from sppo_ray.rundir.layout import RunDir

CONFIG = load_config("quickstart", ["--logging.progress=off", "--logging.tensorboard=false"])


class Began(Exception):
    """The run would have begun."""


@dataclass(frozen=True)
class Crashed:
    """A run whose driver was killed in mid-run, before its first checkpoint."""

    path: Path

    def again(self) -> int:
        return train(CONFIG, self.path, resume=True)

    def status(self) -> dict:
        return json.loads((self.path / "status.json").read_text())


def in_ray_job(monkeypatch: pytest.MonkeyPatch, submission_id: str) -> None:
    monkeypatch.setenv(RAY_JOB_CONFIG, json.dumps({"metadata": {"job_submission_id": submission_id}}))


@pytest.fixture
def crashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crashed:
    monkeypatch.delenv(SUPERVISOR, raising=False)
    in_ray_job(monkeypatch, "raysubmit_1")

    def begins(*_: object) -> None:
        raise Began

    monkeypatch.setattr(train_module, "gather_inputs", begins)
    run_dir = RunDir.create(tmp_path / "run", resume=False)
    write_job(run_dir, CONFIG)
    run_dir.write_config(dump_config(CONFIG))
    run_dir.close()
    return Crashed(run_dir.path)


def test_a_stop_of_this_ray_job_ends_the_run(crashed: Crashed) -> None:
    stop, scale = send(crashed.path, "stop", by="olga"), send(crashed.path, "scale", rollout_workers=2)
    assert crashed.again() == train_module.EXIT_FINISHED
    assert crashed.status()["phase"] == "stopped"
    answers = {command: outcome_of(crashed.path, command) for command in (stop, scale)}
    assert [(answer or {})["outcome"] for answer in answers.values()] == ["done", "refused"]
    assert not list((crashed.path / "control" / "inbox").iterdir())


def test_and_of_this_supervisor(crashed: Crashed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RAY_JOB_CONFIG)
    monkeypatch.setenv(SUPERVISOR, "a1")
    with pytest.raises(Began):
        crashed.again()
    send(crashed.path, "stop")
    assert crashed.again() == train_module.EXIT_FINISHED


def test_a_stop_of_an_earlier_job_is_refused_for_the_run_was_resumed(
    crashed: Crashed, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = send(crashed.path, "stop")
    in_ray_job(monkeypatch, "raysubmit_2")
    for _ in range(2):  # nor does its refusal bind the second start of the new job
        with pytest.raises(Began):
            crashed.again()
    answer = outcome_of(crashed.path, stale)
    assert answer is not None and answer["outcome"] == "refused"


def test_runs_of_a_terminal_have_no_job_in_common(crashed: Crashed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RAY_JOB_CONFIG)
    for _ in range(2):
        send(crashed.path, "stop")
        with pytest.raises(Began):
            crashed.again()


@pytest.mark.parametrize(
    ("outcome", "detail"), [("done", "stops after the current step"), ("refused", "the run has ended")]
)
def test_a_stop_that_was_answered_before_the_crash_still_stands(
    crashed: Crashed, outcome: str, detail: str
) -> None:
    send(crashed.path, "stop")
    inbox = Inbox(crashed.path)
    (command,) = inbox.receive()
    inbox.answer(command, outcome, detail)  # type: ignore[arg-type]
    for _ in range(2):  # also when the start that applies it is killed before it writes the answer
        assert crashed.again() == train_module.EXIT_FINISHED


def test_a_damaged_answer_and_a_damaged_job_file_are_ignored(crashed: Crashed) -> None:
    done = crashed.path / "control" / "done"
    done.mkdir(parents=True)
    for number, text in enumerate(["{", "[]", '{"kind": "stop"}', '{"kind": "stop", "finished": "x"}', "\0"]):
        (done / f"{number}-a.json").write_text(text)
    with pytest.raises(Began):
        crashed.again()
    send(crashed.path, "stop")
    for text in ("[]", "{", '{"submission_id": "raysubmit_1", "supervisor": null, "job_started": "x"}'):
        (crashed.path / "job.json").write_text(text)
        assert job_start(RunDir(crashed.path)) is None
    with pytest.raises(Began):
        crashed.again()


def test_job_json_knows_when_its_job_began(crashed: Crashed, monkeypatch: pytest.MonkeyPatch) -> None:
    first = json.loads((crashed.path / "job.json").read_text())
    assert first["job_started"] == first["started"] and first["supervisor"] is None
    time.sleep(0.01)
    run_dir = RunDir(crashed.path)
    write_job(run_dir, CONFIG)
    again = json.loads(run_dir.job.read_text())
    assert again["job_started"] == first["started"] < again["started"]
    in_ray_job(monkeypatch, "raysubmit_2")
    write_job(run_dir, CONFIG)
    other = json.loads(run_dir.job.read_text())
    assert other["job_started"] == other["started"] and other["created"] == first["created"]


def test_the_supervisor_names_itself_to_every_start(tmp_path: Path) -> None:
    words = ["bash", "-c", f'echo "${SUPERVISOR}" >> {tmp_path}/ids; exit 1']
    assert Supervisor(lambda resume: words, tmp_path, restarts=1, backoff_s=0.01).run(resume=False) == 1
    one, two = (tmp_path / "ids").read_text().split()
    assert one == two and len(one) == 16
