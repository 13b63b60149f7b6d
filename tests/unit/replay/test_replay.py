"""A replay with FAKE learner and critic: what it takes again, from where, and what it says (real
ones: tests/ray).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sppo_ray.cli.replay import _as_long_as_then, _config_of
from sppo_ray.config.loading import dump_config
from sppo_ray.errors import UserError
from sppo_ray.file_digests import FileDigest, digest_folder
from sppo_ray.protocols import PublishedWeights
from sppo_ray.replay.records import Records, starting_point
from sppo_ray.replay.replay import Replay
from sppo_ray.replay.report import Pair, Report, Tolerance, _places, compare, make_report
from sppo_ray.replay.table import headline, replay_table
from sppo_ray.rundir.layout import WEIGHTS
from sppo_ray.rundir.trajectories import read_step
from sppo_ray.rundir.weights_log import read_weights
from sppo_ray.types import PromptValue
from tests.unit.environments.test_turns import episode
from tests.unit.fakes import FakeCritic, FakeLearner, FakeReference, FakeRewardClient
from tests.unit.trainer.test_loop import Run


@dataclass
class CountingLearner(FakeLearner):
    """Its weights are the number of its updates and the sum of their advantages, which its digest
    and its probe tell.
    """

    weights: float = 0.0

    async def update(self, minibatch: Any) -> Any:
        self.weights += 1 + sum(
            float(micro.advantages.sum()) for shard in minibatch.ranks for micro in shard
        )
        await super().update(minibatch)
        return {"loss": 0.5, "logprob_difference_mean": 0.0, "grad_norm": self.weights, "seconds": 0.1}

    async def publish(self, version: int) -> PublishedWeights:
        published = await super().publish(version)
        manifest = replace(published.manifest, digest=f"{self.weights:.6f}")
        return replace(published, manifest=manifest, probe_logprobs=(-self.weights / 1e3,))

    async def load(self, directory: Path) -> None:
        self.weights = float((directory / "weights").read_text())

    async def save(self, directory: Path) -> dict[str, FileDigest]:
        (directory / "weights").write_text(str(self.weights))
        return digest_folder(directory)


@dataclass
class LearningCritic(FakeCritic):
    """Its value logit is a tenth of the number of its updates."""

    updates: int = 0

    async def values(self, token_ids: Any) -> list[PromptValue]:
        self.log.append(f"values {len(token_ids)} by critic {self.updates}")
        logit = self.updates / 10
        return [PromptValue(logit, 1 / (1 + math.exp(-logit)), self.updates) for _ in token_ids]

    async def update(self, batch: Any) -> Any:
        self.updates += 1
        return await super().update(batch)

    async def load(self, directory: Path) -> None:
        self.updates = int((directory / "weights").read_text())

    async def save(self, directory: Path) -> dict[str, FileDigest]:
        (directory / "weights").write_text(str(self.updates))
        return digest_folder(directory)


class Recorded:
    """A finished run of fakes, and replays of it."""

    def __init__(
        self, tmp_path: Path, *overrides: str, reward_client: FakeRewardClient | None = None
    ) -> None:
        self.run = Run(tmp_path, *overrides, reward_client=reward_client)
        self.run.learner, self.run.critic = CountingLearner(self.run.log), LearningCritic(self.run.log)
        self.run.train()
        (self.run.path / "config.yaml").write_text(dump_config(self.run.config))
        self.notes: list[str] = []
        self.log: list[str] = []

    def replay(self, step: int) -> Report:
        path, config = self.run.path, self.run.config
        records = Records(path)
        target = records.target(step)
        start = starting_point(path / "checkpoints", target, self.notes.append)
        learner, critic = CountingLearner(self.log), LearningCritic(self.log) if config.has_critic else None
        reference = FakeReference(self.log) if config.has_reference else None

        async def take_again() -> Any:
            if start.path is not None:
                await learner.load(start.path / "learner")
                if critic is not None:
                    await critic.load(start.path / "critic")
            replay = Replay(config, target, learner=learner, critic=critic, reference=reference)
            steps = [records.step(number) for number in range(start.state.step + 1, step)]
            versions = {
                "policy_version": start.state.policy_version,
                "critic_version": start.state.critic_version,
            }
            return await replay.run([*steps, target], **versions, report=self.log.append)

        found = asyncio.run(take_again())
        return make_report("runs/first", config, target, start, records.weights, found)

    def tamper(self, step: int, row: int, **columns: Any) -> None:
        table = read_step(self.run.path, step)
        rows = table.to_pylist()
        rows[row] |= columns
        pq.write_table(
            pa.Table.from_pylist(rows, schema=table.schema),
            self.run.path / f"trajectories/step-{step:06d}.parquet",
        )


STEPS = ["--loop.steps=4", "--checkpoint.every=2"]
GROUPS = ["--data.prompts_per_step=2", "--data.samples_per_prompt=2", "--data.minibatch_size=2"]


@pytest.mark.parametrize(
    "settings",
    [
        ["--critic.warmup_steps=1"],
        ["--algorithm.old_logprobs=learner", "--algorithm.kl.coefficient=0.1"],
        ["--loop.max_staleness=1"],
        ["--algorithm.type=ppo"],
        ["--algorithm.type=ppo", "--algorithm.critic_loss=bce", "--algorithm.overlong.buffer_tokens=79"],
        ["--algorithm.type=grpo", *GROUPS],
        ["--algorithm.type=rloo", *GROUPS],
        ["--algorithm.type=remax"],
        ["--algorithm.type=reinforce"],
    ],
    ids=lambda settings: " ".join(settings[:2]),
)
def test_every_step_of_every_kind_of_run_matches_itself(tmp_path: Path, settings: list[str]) -> None:
    recorded = Recorded(tmp_path, *STEPS, *settings)
    for step in (1, 2, 3, 4):
        report = recorded.replay(step)
        assert report.matches and report.is_exact, replay_table(report)
        assert not [quantity.name for quantity in report.quantities if quantity.verdict == "unknown"]
    assert headline(report) == "step 4 of runs/first matches, bit for bit"


def test_a_replay_starts_at_the_newest_checkpoint_before_anything_that_the_samples_saw(
    tmp_path: Path,
) -> None:
    synchronous = Recorded(tmp_path, *STEPS)
    assert [synchronous.replay(step).start.state.step for step in (1, 2, 3, 4)] == [0, 0, 2, 2]
    # A checkpoint of the step itself would already hold its update; the values of step 4 are those
    # of critic version 6.
    assert [entry for entry in synchronous.log if entry.startswith("values")][-1] == "values 4 by critic 6"
    (tmp_path / "stale").mkdir()
    overlapped = Recorded(tmp_path / "stale", *STEPS, "--loop.max_staleness=1")
    # The samples of step 3 were dispatched under version 1, with values of the critic of then.
    assert [overlapped.replay(step).start.state.step for step in (1, 2, 3, 4)] == [0, 0, 0, 2]


def test_what_went_before_is_taken_again_too(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "--loop.steps=4", "--checkpoint.every=2")
    shutil.rmtree(recorded.run.path / "checkpoints")
    assert recorded.replay(4).is_exact
    assert [entry for entry in recorded.log if entry.startswith("step")] == [
        f"step {step} of 4: 4 samples, 2 updates" for step in (1, 2, 3, 4)
    ]


def test_a_damaged_checkpoint_is_passed_over_and_left_where_it_is(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, *STEPS)
    weights = recorded.run.path / "checkpoints" / "step-000002" / "learner" / "weights"
    weights.write_text("1e9")
    report = recorded.replay(4)
    assert report.is_exact and report.start.path is None
    assert (
        len(recorded.notes) == 1
        and "learner/weights" in recorded.notes[0]
        and "starts from an earlier one" in recorded.notes[0]
    )
    assert weights.is_file()


def test_a_changed_reward_is_named(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, *STEPS)
    recorded.tamper(2, 3, reward=1.0)
    report = recorded.replay(2)
    assert not report.matches
    assert headline(report) == (
        "step 2 of runs/first DIFFERS, first in shaped rewards (step-1/3/0): recorded 0, re-derived 1"
    )
    # 1 - V in place of 0 - V; the update was made of what is recorded, so nothing after it differs.
    assert [quantity.name for quantity in report.quantities if quantity.verdict == "differs"] == [
        "shaped rewards",
        "advantages",
    ]


def test_a_changed_log_prob_and_a_changed_value_are_named(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, *STEPS)
    recorded.tamper(2, 1, response_logprobs=[-0.1, -0.7])
    wrong = [quantity for quantity in recorded.replay(2).quantities if quantity.verdict == "differs"]
    # The fake learner repeats what it is given, so only a real one finds the log-prob itself
    # (tests/ray/test_replay.py).
    assert wrong == []
    recorded.tamper(2, 1, value=0.9)
    names = [quantity.name for quantity in recorded.replay(2).quantities if quantity.verdict == "differs"]
    assert names == ["values", "advantages"]


def test_other_weights_than_the_runs_are_named_with_the_version_that_went_wrong(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "--loop.steps=3")
    weights = recorded.run.path / WEIGHTS
    rows = [json.loads(line) for line in weights.read_text().splitlines()]
    for row in rows[1:]:  # versions 1 to 3 were made by a process that computed something else
        row |= {"digest": f"wrong{row['version']}", "probe_logprobs": [-0.5]}
    weights.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = recorded.replay(3)
    assert "first in weights before the step (version 2" in headline(
        report
    ) and "replay --step 1" in headline(report)
    assert report.to_dict()["first_wrong_version"] == 1


def test_weights_that_only_round_differently_are_close_but_starting_weights_are_equal_or_other_ones(
    tmp_path: Path,
) -> None:
    recorded = Recorded(tmp_path, "--loop.steps=3")
    weights = recorded.run.path / WEIGHTS
    rows = [json.loads(line) for line in weights.read_text().splitlines()]
    for row in rows[1:]:
        row["digest"] = "of another machine"
    weights.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = recorded.replay(2)
    assert report.matches and not report.is_exact
    assert headline(report).startswith(
        "step 2 of runs/first matches within the tolerances; not to the last bit: weights before"
    )
    rows[0]["digest"] = "of another model"
    weights.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "first in starting weights (version 0" in headline(recorded.replay(2))


def test_a_run_of_an_older_release_has_no_digests_and_says_so(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, *STEPS)
    (recorded.run.path / WEIGHTS).unlink()
    report = recorded.replay(4)
    assert report.matches and not report.is_exact
    assert headline(report).endswith(
        "not recorded: starting weights, weights before the step, weights after the step"
    )


def test_a_step_without_samples_is_passed_and_cannot_be_the_target(tmp_path: Path) -> None:
    settings = ["--algorithm.type=grpo", *GROUPS, "--algorithm.dynamic_sampling.max_rounds=2"]
    # the samples of a prompt all earn the same
    recorded = Recorded(tmp_path, *STEPS, *settings, reward_client=FakeRewardClient())
    with pytest.raises(UserError, match="recorded no samples"):
        Records(recorded.run.path).target(1)
    assert Records(recorded.run.path).step(2).minibatches == ()


def test_what_cannot_be_replayed_is_refused(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, *STEPS)
    path = recorded.run.path
    with pytest.raises(UserError, match="step 9 of run .* has no bundle: recorded are 1 to 4"):
        recorded.replay(9)
    table = (
        read_step(path, 3)
        .drop_columns(["minibatch"])
        .replace_schema_metadata({"sppo_ray.trajectory_schema": "2"})
    )
    pq.write_table(table, path / "trajectories/step-000003.parquet")
    with pytest.raises(UserError, match="step 3 cannot be replayed: recorded by an older release"):
        recorded.replay(3)
    (path / "trajectories/step-000003.parquet").unlink()
    with pytest.raises(UserError, match="step 3 cannot be replayed: .* no trajectories of step 3"):
        recorded.replay(4)
    with pytest.raises(UserError, match="not a run directory"):
        _config_of(tmp_path / "nowhere", [])
    with pytest.raises(UserError, match="learner.optimizer.lr: decides what is computed"):
        _config_of(path, ["--learner.optimizer.lr=0.1"])
    assert _config_of(path, ["--cluster.local_cpus=3"]).cluster.local_cpus == 3


def test_a_schedule_is_as_long_as_it_was_when_the_step_was_taken(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, *STEPS, "--learner.optimizer.schedule=linear")
    path = recorded.run.path
    records, config = Records(path), recorded.run.config
    start = starting_point(path / "checkpoints", records.target(2), recorded.notes.append)
    longer = config.model_copy(update={"loop": config.loop.model_copy(update={"steps": 50})})
    assert _as_long_as_then(longer, records, start, 2).loop.steps == 4
    records.weights[2] = replace(records.weights[2], loop_steps=50)
    with pytest.raises(UserError, match=r"another loop.steps between steps 1 and 2 \(\[4, 50\]\)"):
        _as_long_as_then(longer, records, start, 2)


def test_the_first_line_of_a_version_is_of_the_process_that_made_it(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "--loop.steps=2")
    rows = (recorded.run.path / WEIGHTS).read_text().splitlines()
    again = json.loads(rows[-1]) | {"loop_steps": 99}
    (recorded.run.path / WEIGHTS).write_text("\n".join([*rows, json.dumps(again)]) + "\n")
    assert {version: record.loop_steps for version, record in read_weights(recorded.run.path).items()} == {
        0: 2,
        1: 2,
        2: 2,
    }


# ----------------------------------------------------------------------------------------- verdicts


def test_a_token_of_an_episode_is_named_by_its_turn() -> None:
    sample = episode(random.Random(3), 2)
    first, second = sample.scored.trajectory.turns.lengths[:, 0].tolist()
    named = list(itertools.islice(_places(sample), first + second + 1))
    assert named[0] == "e/0/0, turn 1, token 0" and named[first] == "e/0/0, turn 2, token 0"
    assert named[first + second - 1] == f"e/0/0, turn 2, token {second - 1}"
    assert named[-1] == f"e/0/0, token {first + second}"  # a record with a number too many


def test_the_verdict_of_numbers() -> None:
    pairs = [Pair("a", 1.0, 1.0), Pair("b", 2.0, 2.001), Pair("c", math.nan, math.nan)]
    assert compare("x", pairs[:1], Tolerance(0.0)).verdict == "equal"
    assert compare("x", pairs, Tolerance(1e-3, 1e-3)).verdict == "close"  # 0.001 <= 0.001 + 0.002
    wrong = compare("x", [*pairs, Pair("d", 0.0, 5.0)], Tolerance(0.0))
    # The first that differs is shown, the largest difference is of all.
    assert (wrong.verdict, wrong.differing, wrong.count, wrong.where) == ("differs", 2, 4, "b")
    assert (wrong.recorded, wrong.rederived, wrong.largest_difference) == (2.0, 2.001, 5.0)
    assert compare("x", [], Tolerance(0.0)).verdict == "unknown"


@pytest.mark.parametrize(
    ("recorded", "rederived"), [(1.0, math.nan), (math.nan, 1.0), (None, 1.0), (1.0, None), (math.inf, 1.0)]
)
def test_what_is_missing_or_not_finite_on_one_side_differs(
    recorded: float | None, rederived: float | None
) -> None:
    assert compare("x", [Pair("a", recorded, rederived)], Tolerance(1.0, 0.1)).verdict == "differs"
