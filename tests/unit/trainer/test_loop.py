"""Order of the loop with FAKE workers, and staleness. The real loop is in
tests/ray/test_train.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.config import RunConfig
from sppo_ray.config.loading import load_config
from sppo_ray.display.progress import SilentProgress
from sppo_ray.errors import UserError
from sppo_ray.evaluation.sampler import Evaluator
from sppo_ray.launch.callbacks import Callbacks
from sppo_ray.rollout.pipeline import SamplePipeline
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.rundir.trace import read_trace
from sppo_ray.trainer.advantages import StalenessViolated
from sppo_ray.trainer.checkpoint import TrainerState, verify_checkpoint
from sppo_ray.trainer.loop import Trainer, Workers
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.tracker_state import new_tracker
from sppo_ray.trainer.updates import averages
from sppo_ray.types import Prompt, SamplingSettings
from tests.unit.fakes import FakeCritic, FakeFleet, FakeLearner, FakeReference, FakeRewardClient, prompt

SAMPLING = SamplingSettings(1.0, 4, (0,))
SMALL = [
    "--data.prompts_per_step=4",
    "--data.minibatch_size=2",
    "--critic.warmup_steps=0",
    "--logging.tensorboard=false",
    "--eval.at_start=false",
    "--checkpoint.every=0",
]


class Prompts:
    def __init__(self, size: int) -> None:
        self._size = size

    def cohort(self, index: int) -> Sequence[Prompt]:
        return [prompt(self._size * index + i) for i in range(self._size)]


class Run:
    """A trainer over fakes that share one log of what happened in which order."""

    def __init__(
        self,
        tmp_path: Path,
        *overrides: str,
        reward_client: FakeRewardClient | None = None,
        fleet: FakeFleet | None = None,
    ) -> None:
        self.config: RunConfig = load_config("quickstart", [*SMALL, *overrides])
        self.log: list[str] = []
        self.fleet = fleet or FakeFleet()
        self.fleet.log = self.log
        self.learner, self.critic, self.reward_client = (
            FakeLearner(self.log),
            FakeCritic(self.log),
            reward_client or FakeRewardClient(),
        )
        self.path = tmp_path / "run"

    def train(self, state: TrainerState | None = None) -> TrainerState:
        return asyncio.run(asyncio.wait_for(self._train(state or TrainerState.initial()), 10))

    async def _train(self, state: TrainerState) -> TrainerState:
        async with self.trainer(state) as (trainer, _):
            return await trainer.run()

    @contextlib.asynccontextmanager
    async def trainer(self, state: TrainerState) -> AsyncIterator[tuple[Trainer, Recorder]]:
        run_dir = RunDir(self.path)
        self.path.mkdir(exist_ok=True)
        recorder = Recorder(run_dir, self.config, SilentProgress())
        common: dict[str, Any] = {
            "fleet": self.fleet,
            "reward_client": self.reward_client,
            "decode": lambda rows: ["text"] * len(rows),
            "sampling": SAMPLING,
        }
        pipeline = SamplePipeline(
            **common,
            critic=self.critic if self.config.spec.critic == "prompt" else None,
            order=self.config.loop.minibatch_order,
            seed=1,
            greedy_baseline=self.config.spec.greedy_baseline,
        )
        critic = self.critic if self.config.has_critic else None
        reference = FakeReference(self.log) if self.config.has_reference else None
        evaluator = Evaluator({}, **common, critic=critic, samples_per_prompt=1, seed=1)
        workers = Workers(
            self.fleet, self.learner, critic, reference, self.reward_client, pipeline, evaluator
        )
        trainer = Trainer(
            self.config,
            workers,
            Prompts(self.config.data.prompts_per_step),
            recorder,
            state=state,
            checkpoints=run_dir.checkpoints,
            settings={},
            tracker=new_tracker(self.config, None),
        )
        recorder.begin(state)
        try:
            yield trainer, recorder
        finally:
            await pipeline.close()
            recorder.close()


def test_synchronous_order(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=2")
    state = run.train()
    steps = [
        entry for entry in run.log if entry.startswith(("generate", "publish", "sync", "update", "save"))
    ]
    assert steps == [
        "publish 0", "sync 0",
        "generate step-0 at version 0", "update 2", "update 2", "publish 1", "sync 1",
        "generate step-1 at version 1", "update 2", "update 2", "publish 2", "sync 2",
        "save",
    ]  # fmt: skip
    # 2 steps of 4 samples with 2 response tokens each; 2 critic updates a step
    assert (state.step, state.policy_version, state.critic_version, state.samples, state.response_tokens) == (
        2,
        2,
        4,
        8,
        16,
    )
    assert verify_checkpoint(run.path / "checkpoints" / "step-000002") == state


def test_callbacks_see_each_row_and_an_error_stops_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    run, rows = Run(tmp_path, "--loop.steps=4"), []

    def second(row: Mapping[str, float]) -> None:
        rows.append(row)
        if row["step"] == 2:
            raise ValueError("enough")

    callbacks = Callbacks([second])

    async def train() -> TrainerState:
        async with run.trainer(TrainerState.initial()) as (trainer, recorder):
            recorder.after_step = callbacks.of_run(recorder, stop=trainer.stop)
            return await trainer.run()

    assert asyncio.run(train()).step == 2 and str(callbacks.error) == "enough"
    for recorded, row in zip(read_metrics(run.path), rows, strict=True):
        assert recorded.keys() - {"time", "nonfinite"} == row.keys()
        assert (recorded["step"], recorded["reward/mean"]) == (row["step"], row["reward/mean"])
    assert verify_checkpoint(run.path / "checkpoints" / "step-000002").step == 2


@pytest.mark.parametrize("staleness", [1, 2])
def test_overlapped_cohorts_are_dispatched_ahead_and_within_the_bound(tmp_path: Path, staleness: int) -> None:
    run = Run(tmp_path, "--loop.steps=5", f"--loop.max_staleness={staleness}")
    run.train()
    generated = [entry for entry in run.log if entry.startswith("generate")]
    # Cohort k goes out under version max(0, k - s), and there is no cohort beyond the last step.
    assert generated == [f"generate step-{k} at version {max(0, k - staleness)}" for k in range(5)]
    rows = read_metrics(run.path)
    assert [row["staleness/max"] for row in rows] == [min(k, staleness) for k in range(5)]


def test_values_are_requested_when_prompts_are_dispatched(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=1")
    run.train()
    assert run.log.index("values 4 by critic 0") < run.log.index("update 2")


def test_advantage_is_reward_minus_value(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=1")
    run.train()
    # Even prompts earn 1, odd ones 0; every value is 0.5: advantages +0.5 and -0.5.
    advantages = [
        a
        for minibatch in run.learner.updates
        for micro in minibatch.ranks[0]
        for a in micro.advantages.tolist()
    ]
    assert sorted(advantages) == [-0.5] * 4 + [0.5] * 4  # two response tokens each


def test_the_critic_learns_alone_during_warm_up(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=3", "--critic.warmup_steps=2")
    run.train()
    assert len(run.learner.updates) == 2 and len(run.critic.batches) == 6


def test_learner_log_probs_are_taken_before_the_first_update(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=1", "--algorithm.old_logprobs=learner")
    run.train()
    assert [entry for entry in run.log if entry in ("recompute", "update 2")] == [
        "recompute",
        "recompute",
        "update 2",
        "update 2",
    ]


def test_the_mismatch_is_the_first_minibatchs(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=1")
    run.train()
    row = read_metrics(run.path)[0]
    assert row["mismatch/logprob_difference_mean"] == pytest.approx(0.01)
    assert row["policy/logprob_difference_mean"] == pytest.approx(0.015)  # mean of 0.01 and 0.02


def test_an_unscored_response_is_left_out_and_counted(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        "--loop.steps=1",
        "--reward.max_error_rate=0.25",
        reward_client=FakeRewardClient(broken=frozenset({"3"})),
    )
    state = run.train()
    assert state.samples == 3 and state.reward_errors == 1
    assert [m.num_global_samples for m in run.learner.updates] == [2, 1]
    assert read_metrics(run.path)[0]["reward/errors"] == 1


def test_too_many_reward_errors_stop_the_run_with_the_remedy(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=1", reward_client=FakeRewardClient(broken=frozenset({"3"})))
    with pytest.raises(
        UserError, match=r"failed on 1 of 4 responses.*task/3: error: timeout after 10 s.*reward.deadline_s"
    ):
        run.train()


def test_a_sample_that_is_too_old_is_a_bug_and_stops(tmp_path: Path) -> None:
    class Stuck(FakeFleet):
        async def sync(self, published: Any) -> Any:
            proof = await super().sync(published)
            self.version = 0
            return proof

    run = Run(tmp_path, "--loop.steps=3", fleet=Stuck())
    with pytest.raises(
        StalenessViolated, match=r"step 1: rollout-0 sampled .* at policy version 0, the learner is at 1"
    ):
        run.train()


def test_a_run_goes_on_where_its_state_says(tmp_path: Path) -> None:
    first = Run(tmp_path / "a", "--loop.steps=4")
    (tmp_path / "a").mkdir()
    whole = first.train()
    (tmp_path / "b").mkdir()
    half = Run(tmp_path / "b", "--loop.steps=2").train()
    rest = Run(tmp_path / "b", "--loop.steps=4")
    resumed = rest.train(half)
    assert (resumed.step, resumed.samples, resumed.policy_version) == (
        whole.step,
        whole.samples,
        whole.policy_version,
    )
    assert [e for e in rest.log if e.startswith("generate")] == [
        "generate step-2 at version 2",
        "generate step-3 at version 3",
    ]
    assert [row["step"] for row in read_metrics(rest.path)] == [1, 2, 3, 4]


def test_a_steps_metrics_keep_maxima_counts_and_totals() -> None:
    rows = [
        {"loss": 0.2, "ratio_max": 1.0, "skipped": 0.0, "skipped_total": 3.0},
        {"loss": 0.4, "ratio_max": 50.0, "skipped": 1.0, "skipped_total": 4.0},
    ]
    assert averages("policy", rows) == pytest.approx(
        {"policy/loss": 0.3, "policy/ratio_max": 50.0, "policy/skipped": 1.0, "policy/skipped_total": 4.0}
    )


def test_a_trace_shows_what_the_loop_waited_for(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=2", "--logging.trace=true")
    run.train()
    spans = [event["name"] for event in read_trace(run.path) if event["ph"] == "X"]
    assert spans.count("sync") == 3 and spans.count("update") == 4
    assert {"generate-wait", "first-batch", "critic-wait", "log", "checkpoint"} < set(spans)
    steps = [row for row in read_metrics(run.path) if "seconds/step" in row]
    assert all(row["time/driver/driver"] + row["time/driver/wait"] == pytest.approx(1) for row in steps)
