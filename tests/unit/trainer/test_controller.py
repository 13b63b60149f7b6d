"""Commands to a run: their files, and the effects of pause, checkpoint, stop and scale on a loop
with FAKE workers.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.config import AutoscaleSettings, RolloutSettings
from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from sppo_ray.launch.job import submission_id, write_job
from sppo_ray.launch.train import train
from sppo_ray.rollout.autoscale import Autoscaler
from sppo_ray.rollout.views import PendingView, WorkerView
from sppo_ray.rundir.commands import Inbox, outcome_of, send
from sppo_ray.rundir.heartbeat import heartbeat
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.metrics import read_events, read_metrics
from sppo_ray.trainer.checkpoint import TrainerState, verify_checkpoint
from sppo_ray.trainer.controller import Controller
from tests.unit.fakes import FakeFleet
from tests.unit.trainer.test_loop import Run

# ----------------------------------------------------------------------------------------- as files


def test_a_command_is_received_once_and_its_outcome_can_be_read(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    sent = send(tmp_path, "scale", rollout_workers=2, by="cli")
    (command,) = inbox.receive()
    assert (command.id, command.kind, command.rollout_workers, command.by) == (sent, "scale", 2, "cli")
    assert inbox.receive() == [] and outcome_of(tmp_path, sent) is None
    inbox.answer(command, "done", "1 -> 2 rollout workers")
    answered = outcome_of(tmp_path, sent)
    assert answered is not None and answered["finished"] >= answered["time"]
    assert (answered["outcome"], answered["detail"]) == ("done", "1 -> 2 rollout workers")
    assert list((tmp_path / "control/inbox").iterdir()) == []


def test_commands_come_in_the_order_in_which_they_were_sent(tmp_path: Path) -> None:
    sent = [send(tmp_path, kind) for kind in ("pause", "checkpoint", "resume", "stop")]
    assert [command.id for command in Inbox(tmp_path).receive()] == sent


@pytest.mark.parametrize(
    ("kind", "count", "message"),
    [
        ("scale", None, "scale needs rollout_workers, a whole number from 1 to 1024, and got None"),
        ("scale", 0, "got 0"),
        ("scale", True, "got True"),
        ("scale", 10**9, "from 1 to 1024"),
        ("pause", 2, "pause takes no rollout_workers"),
        ("explode", None, "unknown command 'explode': there are scale, pause, resume, checkpoint, stop"),
    ],
)
def test_a_command_that_no_run_could_obey_is_not_sent(
    tmp_path: Path, kind: Any, count: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        send(tmp_path, kind, rollout_workers=count)
    assert not (tmp_path / "control").exists()


def test_a_run_that_is_not_there_gets_no_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        send(tmp_path / "nowhere", "pause")


@pytest.mark.parametrize("link", ["control", "control/inbox"])
def test_a_command_follows_no_link_out_of_the_run_directory(tmp_path: Path, link: str) -> None:
    run_dir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (run_dir / link).parent.mkdir(parents=True)
    elsewhere.mkdir()
    (run_dir / link).symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link"):
        send(run_dir, "pause")
    assert not any(elsewhere.rglob("*"))


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '{"kind": "pause"}', '{"id": "x", "kind": ["pause"], "time": '
                                                    '1}', "9" * 70_000, "[" * 60_000,
        '{"id": "x", "kind": "pause", "time": 1' + "0" * 400 + "}",
    ],
)  # fmt: skip
def test_what_is_no_command_is_refused_and_moved_away(tmp_path: Path, text: str) -> None:
    inbox = Inbox(tmp_path)
    (tmp_path / "control/inbox/1-bad.json").write_text(text)
    (tmp_path / "control/inbox/.half-written.json.tmp").write_text("{")
    assert inbox.receive() == []
    answer = json.loads((tmp_path / "control/done/1-bad.json").read_text())
    assert answer["outcome"] == "refused"
    assert [path.name for path in (tmp_path / "control/inbox").iterdir()] == [".half-written.json.tmp"]


# ---------------------------------------------------------------------------------------- on a loop


class ScalableFleet(FakeFleet):
    """A FakeFleet that can be asked for other numbers; 9 are refused."""

    wanted = 1
    is_settled = True

    def scale(self, wanted: int) -> str:
        if wanted == 9:
            raise UserError("rollout_workers 9 is more than rollout.max_workers 8: ask for at most 8")
        before, self.wanted = self.wanted, wanted
        return f"{before} -> {wanted} rollout workers"

    def view(self) -> list[WorkerView]:
        return [WorkerView("rollout-0", "HEALTHY", self.version, 0, 0, 4)]

    def pending(self) -> list[PendingView]:
        return [PendingView("rollout-1", "2 CPU, 1 GPU", 12.0)] if self.wanted > 1 else []


class Steered(Run):
    """A run whose loop stands beside a Controller and a scenario that sends commands."""

    def __init__(self, tmp_path: Path, *overrides: str) -> None:
        super().__init__(tmp_path, "--logging.trajectories=false", *overrides, fleet=ScalableFleet())
        self.path.mkdir()

    def steer(self, scenario: Callable[[], Any]) -> TrainerState:
        return asyncio.run(asyncio.wait_for(self._steer(scenario), 20))

    async def _steer(self, scenario: Callable[[], Any]) -> TrainerState:
        async with self.trainer(TrainerState.initial()) as (trainer, recorder):
            controller = Controller(Inbox(self.path), gate=trainer.gate, fleet=self.fleet, recorder=recorder)
            async with controller.running():
                steering = asyncio.ensure_future(scenario())
                state = await trainer.run()
                await steering
            return state

    @property
    def status(self) -> dict[str, Any]:
        return json.loads((self.path / "status.json").read_text())

    async def until(self, condition: Callable[[], Any]) -> Any:
        while not (found := condition()):
            await asyncio.sleep(0.005)
        return found

    async def do(self, kind: Any, **fields: Any) -> tuple[str, str]:
        sent = send(self.path, kind, by="tester", **fields)
        answer = await self.until(lambda: outcome_of(self.path, sent))
        return answer["outcome"], answer["detail"]


@pytest.fixture(autouse=True)
def _poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_ray.trainer.controller.POLL_S", 0.01)


def test_a_paused_run_waits_for_resume(tmp_path: Path) -> None:
    run = Steered(tmp_path, "--loop.steps=40")

    async def scenario() -> None:
        assert await run.do("pause") == ("done", "pauses after the current step")
        await run.until(lambda: run.status["phase"] == "paused")
        steps = run.status["state"]["step"]
        assert await run.do("scale", rollout_workers=2) == ("done", "1 -> 2 rollout workers")
        status = run.status
        assert (status["paused"], status["stage"], status["wanted_workers"]) == (True, "pause", 2)
        assert status["pending"] == [{"worker": "rollout-1", "waiting_for": "2 CPU, 1 GPU", "since": 12.0}]
        assert (status["control"]["kind"], status["control"]["outcome"]) == ("scale", "done")
        # at once: there is no step under way
        assert await run.do("checkpoint") == ("done", f"step-{steps:06d}")
        assert verify_checkpoint(run.path / "checkpoints" / f"step-{steps:06d}").step == steps
        assert (run.status["phase"], run.status["state"]["step"]) == ("paused", steps)
        assert await run.do("resume") == ("done", "resumes")

    state = run.steer(scenario)
    assert state.step == 40
    assert [row["step"] for row in read_metrics(run.path)] == list(range(1, 41))
    kinds = [event["kind"] for event in read_events(run.path)]
    assert kinds.count("paused") == kinds.count("pause-over") == 1
    messages = [event["message"] for event in read_events(run.path) if event["kind"] == "control"]
    assert messages[1] == "scale 2 by tester: done: 1 -> 2 rollout workers"


def test_stop_ends_a_paused_run_with_a_checkpoint(tmp_path: Path) -> None:
    run = Steered(tmp_path, "--loop.steps=40")

    async def scenario() -> None:
        await run.do("pause")
        await run.until(lambda: run.status["phase"] == "paused")
        assert await run.do("stop") == ("done", "stops after the current step, with a checkpoint")

    state = run.steer(scenario)
    assert state.step < 40
    assert verify_checkpoint(run.path / "checkpoints" / f"step-{state.step:06d}") == state


def test_a_checkpoint_now_is_answered_when_it_is_written(tmp_path: Path) -> None:
    run = Steered(tmp_path, "--loop.steps=40", "--checkpoint.keep=5")

    async def scenario() -> None:
        outcome, name = await run.do("checkpoint")
        assert outcome == "done" and verify_checkpoint(run.path / "checkpoints" / name).step < 40

    run.steer(scenario)


def test_what_is_out_of_bounds_is_refused_with_the_reason_and_the_run_goes_on(tmp_path: Path) -> None:
    run = Steered(tmp_path, "--loop.steps=40")

    async def scenario() -> None:
        refused = ("refused", "rollout_workers 9 is more than rollout.max_workers 8: ask for at most 8")
        assert await run.do("scale", rollout_workers=9) == refused

    assert run.steer(scenario).step == 40


def test_what_comes_too_late_is_refused(tmp_path: Path) -> None:
    run = Steered(tmp_path, "--loop.steps=1")
    sent: list[str] = []

    async def scenario() -> None:
        await run.until(lambda: (run.path / "metrics.jsonl").exists() and read_metrics(run.path))
        sent.append(send(run.path, "pause"))

    run.steer(scenario)
    answer = outcome_of(run.path, sent[0])
    # Either the poll still saw it, and a run that is over does not wait, or it was found at the
    # end.
    assert answer is not None and (answer["outcome"], answer["detail"]) in [
        ("refused", "the run has ended"),
        ("done", "pauses after the current step"),
    ]


def test_the_rule_scales_the_fleet_of_a_loop(tmp_path: Path) -> None:
    rule = [
        "--rollout.max_workers=3",
        "--rollout.autoscale.busy_above=0.001",
        "--rollout.autoscale.idle_below=0.0",
    ]
    run = Steered(tmp_path, "--loop.steps=30", *rule, "--rollout.autoscale.every_s=0.001")

    async def scenario() -> None:
        return None

    run.steer(scenario)
    asked = [event["message"] for event in read_events(run.path) if event["kind"] == "autoscale"]
    # and never beyond max_workers
    assert asked == ["1 -> 2 rollout workers", "2 -> 3 rollout workers"]


# ----------------------------------------------------------------------------------------- the rule


def rule(**fields: Any) -> Autoscaler:
    autoscale = AutoscaleSettings(busy_above=0.5, idle_below=0.1, every_s=10.0)
    return Autoscaler(RolloutSettings(workers=2, max_workers=3, autoscale=autoscale, **fields))


def test_it_decides_by_the_share_of_waiting_over_a_whole_window() -> None:
    scaler = rule()
    # 6 s with 5 waited, then 6 s with 2: 7 of 12 s = 58% > 50%, decided when 10 s are full
    assert scaler.after_step(seconds=6, waited=5, workers=2, is_settled=True) is None
    assert scaler.after_step(seconds=6, waited=2, workers=2, is_settled=True) == 3
    assert rule().after_step(seconds=10, waited=0.5, workers=2, is_settled=True) == 1  # 5% < 10%
    assert rule().after_step(seconds=10, waited=3, workers=2, is_settled=True) is None


def test_it_keeps_to_the_bounds_and_measures_anew_after_a_change() -> None:
    scaler = rule(min_workers=2)
    # min_workers
    assert scaler.after_step(seconds=10, waited=0, workers=2, is_settled=True) is None
    # somebody comes or goes
    assert scaler.after_step(seconds=10, waited=10, workers=2, is_settled=False) is None
    # 9 s since then
    assert scaler.after_step(seconds=9, waited=9, workers=2, is_settled=True) is None
    assert scaler.after_step(seconds=1, waited=1, workers=2, is_settled=True) == 3
    # the first step of the new fleet
    assert scaler.after_step(seconds=10, waited=10, workers=3, is_settled=True) is None
    # max_workers
    assert scaler.after_step(seconds=10, waited=10, workers=3, is_settled=True) is None


# ------------------------------------------------------------------------------------ signs of life


def test_the_heartbeat_continues_while_the_main_thread_is_blocked() -> None:
    beats: list[float] = []

    def beat() -> None:
        beats.append(time.monotonic())
        if len(beats) == 1:
            raise OSError("disk full")  # the next beat tries again

    with heartbeat(beat, every_s=0.02):
        time.sleep(0.3)
    count = len(beats)
    assert count >= 3
    time.sleep(0.05)
    assert len(beats) == count


def test_a_start_that_fails_says_so_in_the_record_and_obeys_nothing_older(tmp_path: Path) -> None:
    config = load_config("quickstart", ["--learner.model=/nowhere/model", "--logging.progress=off"])
    early = send(tmp_path, "stop")
    with pytest.raises(UserError, match="/nowhere/model"):
        train(config, tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["phase"], status["paused"], status["pending"], status["eta_s"]) == (
        "failed",
        False,
        [],
        None,
    )
    error = status["last_error"]
    assert error["actor"] is None and "model_paths" in error["stack"]
    assert error["message"].startswith("model '/nowhere/model': ")  # no name of a class before it
    answer = outcome_of(tmp_path, early)
    assert answer is not None and answer["detail"] == "the run was not running when the command arrived"


def test_job_json_says_who_runs_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run_dir = RunDir.create(tmp_path / "my-run", resume=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    write_job(run_dir, run.config)
    first = json.loads(run_dir.job.read_text())
    assert (first["run_id"], first["submission_id"], first["pid"], first["ray_address"]) == (
        "my-run",
        None,
        os.getpid(),
        "10.0.0.1:6379",
    )
    metadata = {
        "runtime_env": {},
        "metadata": {"job_submission_id": "raysubmit_x", "job_name": "raysubmit_x"},
    }
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(metadata))
    assert submission_id() == "raysubmit_x"
    write_job(run_dir, run.config)
    second = json.loads(run_dir.job.read_text())
    run_dir.close()
    assert second["submission_id"] == "raysubmit_x"
    assert second["created"] == first["created"] and second["started"] > first["started"]
