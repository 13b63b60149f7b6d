"""Run directories for the page's tests, written by the real Recorder."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from sppo_ray.config.loading import dump_config, load_config
from sppo_ray.display.progress import SilentProgress
from sppo_ray.evaluation.scores import GradedResponse, evaluate
from sppo_ray.launch.job import write_job
from sppo_ray.rollout.views import WorkerView
from sppo_ray.rundir.layout import RunDir
from sppo_ray.trainer.checkpoint import TrainerState
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.types import Prompt, PromptValue, RequestId, ScoredTrajectory, TrainingSample, Trajectory, Turns

SAMPLES = 24  # a step
HELD_OUT = 64  # prompts of an evaluation, every 10 steps
MOST_WORKERS = 4
SECONDS = 2.2  # of a step, by the trainer's count
ATTACK = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'
TEX_PROMPT = "Solve \\(x^2 - 5x + 6 = 0\\) and give the larger root. It costs $5 or $6, never more."
TEX_RESPONSE = (
    "We factor: \\[(x-2)(x-3) = 0 \\quad\\Rightarrow\\quad x = \\frac{5 \\pm \\sqrt{25 - 24}}{2}\\] "
    "so the answer is $\\boxed{3}$."
)


class RecordedRun:
    """A run that records n steps on `advance(n)` and ends on `end()`."""

    def __init__(
        self, path: Path, *, seed: int, steps: int = 30, budget_s: float | None = None, failure: float = 0.0
    ) -> None:
        """`failure`: the reward of a response that is wrong, in evaluations."""
        self.failure = failure
        numbers = {
            "seed": seed,
            "loop.steps": steps,
            "rollout.workers": 2,
            "rollout.max_workers": MOST_WORKERS,
        }
        numbers |= {} if budget_s is None else {"loop.budget_s": budget_s}
        overrides = [
            *(f"--{name}={number}" for name, number in numbers.items()),
            "--logging.tensorboard=false",
        ]
        self.config = load_config("quickstart", overrides)
        self.run_dir = RunDir.create(path, resume=False)
        self.run_dir.write_config(dump_config(self.config))
        write_job(self.run_dir, self.config)
        self.clock = 0.0  # seconds; a test has no time for those of a training
        self.recorder = Recorder(self.run_dir, self.config, SilentProgress(), clock=lambda: self.clock)
        self.random = random.Random(seed)
        self.state = TrainerState.initial()
        self.recorder.event("started", f"all actors up after {20 + seed}.4 s")
        self._evaluate()
        self.recorder.begin(self.state)

    def advance(self, steps: int, *, special: bool = False) -> None:
        """Record so many steps; `special` puts TeX and an attack into the last one."""
        for left in range(steps, 0, -1):
            self._step(special=special and left == 1)
            if self.state.step % 10 == 0:
                self._evaluate()
            if self.state.step % 25 == 0:
                self.recorder.checkpoint(self._checkpoint())

    def end(self, phase: Literal["finished", "stopped", "failed"], **fields: object) -> None:
        self.recorder.phase(phase, self.state, **fields)
        self.recorder.close()
        self.run_dir.close()

    def _skill(self) -> float:
        """The chance to solve a prompt of middling difficulty, by the number of steps done."""
        return 0.4 + 0.57 / (1 + math.exp(-(self.state.step - 9) / 3))

    def _step(self, *, special: bool) -> None:
        version, skill = self.state.policy_version, self._skill()
        samples = [self._sample(index, version, skill) for index in range(SAMPLES)]
        if special:
            samples[:3] = [
                retold(samples[0], TEX_PROMPT, TEX_RESPONSE),
                retold(samples[1], ATTACK, f"{ATTACK} \\boxed{{{ATTACK}}}"),
                as_episode(retold(samples[2], "a game", "8+12")),
            ]
        tokens = sum(len(sample.scored.trajectory.response_ids) for sample in samples)
        state = self.state
        self.state = replace(
            state,
            step=state.step + 1,
            policy_version=version + 1,
            critic_version=state.critic_version + 4,
            samples=state.samples + SAMPLES,
            response_tokens=state.response_tokens + tokens,
            seconds=state.seconds + SECONDS,
        )
        for stage, seconds, worker, label in (
            ("generate-wait", 1.2 + 0.3 * self.random.random(), "rollout-0", "generate"),
            ("update", 0.7, "learner", "train"),
            ("critic-wait", 0.05, "critic", "critic"),
            ("sync", 0.1, "learner", "sync"),
        ):
            with self.recorder.stage(stage), self.recorder.times.span(worker, label, label):
                self.clock += seconds
        self.clock += 0.05
        surge = math.exp(-(((state.step - 8) / 4) ** 2))
        metrics = {
            "policy/effective_sample_size": 0.99 - 0.1 * surge * self.random.random(),
            "policy/masked_fraction": 0.004 * surge * self.random.random(),
            "value/explained_variance": 0.3 + 0.1 * self.random.random(),
            "policy/clip_fraction_low": 0.0003 + 0.004 * surge * self.random.random(),
            "policy/clip_fraction_high": 0.0001 + 0.002 * surge * self.random.random(),
            "policy/approx_kl_k3": 2e-5 + 1.5e-3 * surge * self.random.random(),
            "policy/entropy": 0.004 + 0.03 * math.exp(-state.step / 15),
            "policy/grad_norm": 0.05 + 0.1 * self.random.random(),
            "critic/grad_norm": 0.3 + 0.8 * math.exp(-state.step / 10) + 0.2 * self.random.random(),
        }
        busy = [0.9 * self.clock, 0.7 * self.clock]
        workers = [
            WorkerView(f"rollout-{i}", "HEALTHY", self.state.policy_version, 0, 16, 800 + i, busy[i])
            for i in range(2)
        ]
        self.recorder.trajectories(self.state.step, [samples], learner_version=version)
        self.recorder.step(self.state, [samples], metrics, learner_version=version, fleet=workers)

    def _sample(self, index: int, version: int, skill: float) -> TrainingSample:
        numbers = [self.random.randint(1, 9) for _ in range(self.random.randint(3, 8))]
        chance = min(max(skill + 0.05 * (5 - len(numbers)), 0.02), 0.99)
        reward = float(self.random.random() < chance)
        # The critic starts at one half and learns the chance.
        learned = 1 - math.exp(-version / 8)
        value = min(max(learned * chance + (1 - learned) * 0.5 + self.random.gauss(0, 0.03), 0.01), 0.99)
        prompt_id = f"running-sum/{1000 * version + index}"
        prompt = Prompt(
            prompt_id, "running-sum", "+".join(map(str, numbers)) + "=", (1, 2), (1, 2), str(sum(numbers)), {}
        )
        answer = sum(numbers) if reward else sum(numbers) - 1
        ids = tuple(range(6 * len(numbers)))
        trajectory = Trajectory(
            RequestId(str(version), index, 0),
            prompt_id,
            ids,
            (-0.1,) * len(ids),
            "stop",
            version,
            version,
            f"rollout-{index % 2}",
            0.9,
        )
        logit = PromptValue(math.log(value / (1 - value)), value, 4 * version)
        reason = "correct" if reward else f"answer {answer}, expected {sum(numbers)}"
        response = f"{'+'.join(map(str, numbers))} = \\boxed{{{answer}}}"
        return TrainingSample(
            ScoredTrajectory(prompt, trajectory, response, reward, reason, 0.001, logit),
            reward - value,
            reward,
        )

    def _evaluate(self) -> None:
        chance = self._skill()
        graded = [
            GradedResponse(
                f"held-out/{i}",
                "running-sum",
                0,
                1.0 if self.random.random() < chance else self.failure,
                "",
                36 + i % 9,
                False,
                "1",
            )
            for i in range(HELD_OUT)
        ]
        report = evaluate(
            graded, k=1, step=self.state.step, policy_version=self.state.policy_version, seconds=1.5
        )
        first, best = self.state.initial_accuracy, self.state.best_accuracy or 0.0
        self.state = replace(
            self.state,
            initial_accuracy=report.accuracy if first is None else first,
            final_accuracy=report.accuracy,
            best_accuracy=max(best, report.accuracy),
        )
        self.recorder.evaluation(self.state, report)

    def _checkpoint(self) -> Path:
        path = self.run_dir.checkpoints / f"step-{self.state.step:06d}"
        path.mkdir(parents=True)
        files = {"learner/state.pt": {"bytes": 3 * 2**20}}
        (path / "manifest.json").write_text(
            json.dumps({"step": self.state.step, "files": files}), encoding="utf-8"
        )
        return path


def retold(sample: TrainingSample, prompt: str, response: str) -> TrainingSample:
    """The same sample with other words, a failure that nobody expected."""
    scored = sample.scored
    told = replace(
        scored,
        prompt=replace(scored.prompt, text=prompt, ground_truth=ATTACK if prompt == ATTACK else "3"),
        response_text=response,
        reward=0.0,
        reason=f"no number in {response[:20]}",
        value=PromptValue(4.6, 0.99, 1),
    )
    return replace(sample, scored=told, advantage=-0.99, shaped_reward=0.0)


def as_episode(sample: TrainingSample) -> TrainingSample:
    """The same sample as two actions with an attack for an observation between them."""
    trajectory = sample.scored.trajectory
    lengths = np.array([[2, 3], [len(trajectory.response_ids) - 5, 0]], np.int32)
    versions = np.full((2, 2), trajectory.policy_version)
    turns = Turns(lengths, versions, np.array([0.25, 0.0]), "turns", 0.1, ("eight", ATTACK, "twelve"))
    played = replace(trajectory, turns=turns, finish_reason="turns")
    return replace(sample, scored=replace(sample.scored, trajectory=played))
