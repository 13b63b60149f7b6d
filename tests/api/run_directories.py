"""Run directories written by the project's writers, without a trainer."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.config import RunConfig
from sppo_ray.config.loading import dump_config, load_config
from sppo_ray.display.progress import SilentProgress
from sppo_ray.evaluation.scores import GradedResponse, evaluate
from sppo_ray.launch.job import write_job
from sppo_ray.rollout.views import WorkerView
from sppo_ray.rundir.layout import LOCK, RunDir
from sppo_ray.rundir.summary import Summary
from sppo_ray.trainer.checkpoint import TrainerState
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.types import Prompt, PromptValue, RequestId, ScoredTrajectory, TrainingSample, Trajectory

SMALL = ["--logging.tensorboard=false", "--loop.steps=60"]


def sample(
    index: int, *, reward: float, value: float | None, response: str = "12", version: int = 0
) -> TrainingSample:
    prompt = Prompt(f"sum/{index}", "sum", f"<s>a{index}b5=", (1, 5, 6), (9, 8), "12")
    ids = tuple(range(1, index + 2))  # as many tokens as its place, plus 1
    trajectory = Trajectory(
        RequestId("1", index, 0),
        prompt.id,
        ids,
        (-0.5,) * len(ids),
        "stop",
        version,
        version,
        "rollout-0",
        0.25,
    )
    critic = None if value is None else PromptValue(0.0, value, 0)
    scored = ScoredTrajectory(
        prompt, trajectory, response, reward, "correct" if reward else "wrong", 0.01, critic
    )
    return TrainingSample(scored, reward - (value or 0.0), reward)


# Surprise |R - V|: .1, .8, .5, .0
FOUR = [(1.0, 0.9), (0.0, 0.8), (1.0, 0.5), (0.0, 0.0)]


class LiveRun:
    """A run that this process writes: to the server it is RUNNING until `finish`, `fail` or
    `vanish`.
    """

    def __init__(self, root: Path, name: str = "first", *, overrides: list[str] | None = None) -> None:
        self.config: RunConfig = load_config("quickstart", [*SMALL, *(overrides or [])])
        self.run_dir = RunDir.create(root / name, resume=False)
        self.path = self.run_dir.path
        write_job(self.run_dir, self.config)
        self.run_dir.write_config(dump_config(self.config))
        self.recorder = Recorder(self.run_dir, self.config, SilentProgress())
        self.state = TrainerState.initial()
        self.recorder.begin(self.state)
        self.recorder.event("started", "all actors up after 1.0 s")

    def step(self, rows: list[tuple[float, float | None]] | None = None, *, response: str = "12") -> None:
        """One step of four samples with (reward, value) of FOUR; the mean reward is 2/4."""
        number = self.state.step + 1
        rows = FOUR if rows is None else rows
        samples = [
            sample(i, reward=r, value=v, response=response, version=number - 1)
            for i, (r, v) in enumerate(rows)
        ]
        tokens = sum(len(s.scored.trajectory.response_ids) for s in samples)
        self.state = replace(
            self.state,
            step=number,
            policy_version=number,
            samples=self.state.samples + len(samples),
            response_tokens=self.state.response_tokens + tokens,
            seconds=self.state.seconds + 2.0,
        )
        fleet = [WorkerView("rollout-0", "HEALTHY", number, 0, 3, 4 * number)]
        self.recorder.trajectories(number, [samples], learner_version=number)
        self.recorder.step(self.state, [samples], {"policy/loss": 0.25}, learner_version=number, fleet=fleet)

    def evaluate(self, accuracy: float) -> None:
        """Ten held-out prompts, one response each."""
        solved = round(10 * accuracy)
        graded = [
            GradedResponse(f"h/{i}", "sum", 0, float(i < solved), "12", 3, False, "12") for i in range(10)
        ]
        report = evaluate(graded, k=1, step=self.state.step, policy_version=self.state.policy_version)
        best = max(accuracy, self.state.best_accuracy or 0.0)
        first = self.state.initial_accuracy if self.state.initial_accuracy is not None else accuracy
        self.state = replace(self.state, initial_accuracy=first, final_accuracy=accuracy, best_accuracy=best)
        self.recorder.evaluation(self.state, report)
        self.recorder.phase("training", self.state)

    def finish(self, *, status: str = "finished") -> None:
        state = self.state
        self.run_dir.write_summary(
            Summary(
                name=self.config.name,
                status=status,
                algorithm="sppo",
                seed=1,
                steps=state.step,
                seconds=state.seconds,
                samples=state.samples,
                response_tokens=state.response_tokens,
                initial_accuracy=state.initial_accuracy,
                final_accuracy=state.final_accuracy,
                best_accuracy=state.best_accuracy,
                policy_version=state.policy_version,
                critic_version=0,
                reward_errors=0,
                restarts=0,
            )  # fmt: skip
        )
        self.recorder.phase(status, state)
        self.close()

    def fail(self, **last_error: Any) -> None:
        self.recorder.phase("failed", last_error=last_error)
        self.close()

    def vanish(self) -> None:
        """As after kill -9: the lock still names a process, which is gone."""
        self.close()
        gone = subprocess.Popen(["true"])
        gone.wait()
        text = (self.path / LOCK).read_text()
        (self.path / LOCK).write_text(f"pid {gone.pid} {text.partition(' ')[2].partition(' ')[2]}")

    def close(self) -> None:
        self.recorder.close()
        self.run_dir.close()

    def answer_commands(self, outcome: str = "done", detail: str = "as asked") -> list[dict[str, Any]]:
        """What the trainer's controller does with its inbox. Returns the commands."""
        from sppo_ray.rundir.commands import Inbox

        inbox = Inbox(self.path)
        commands = inbox.receive()
        for command in commands:
            inbox.answer(command, outcome, detail)  # type: ignore[arg-type]
        return [command.to_dict() for command in commands]


def finished_run(root: Path, name: str, *, steps: int = 3, accuracy: float = 0.7) -> LiveRun:
    run = LiveRun(root, name)
    run.evaluate(0.4)
    for _ in range(steps):
        run.step()
    run.evaluate(accuracy)
    run.finish()
    return run


def waiting_submission(root: Path, name: str, *, age_s: float = 0.0) -> Path:
    """As the server leaves a job that Ray has accepted and whose trainer has not begun."""
    path = root / name
    path.mkdir(parents=True)
    record = {
        "submission_id": name,
        "recipe": "quickstart",
        "metadata": {},
        "by": "alice",
        "created": time.time() - age_s,
    }
    (path / "submission.json").write_text(json.dumps(record))
    return path


def own_module(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, *, function: str = "score") -> None:
    """Put a module with a reward function on the import path."""
    file = folder.joinpath(*name.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True)
    file.write_text(f"def {function}(response, ground_truth, extra): return 1.0")
    monkeypatch.syspath_prepend(str(folder))
