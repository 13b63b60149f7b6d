"""The check before the first update after a sync. Real engines are in
tests/ray/test_first_batch.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from sppo_ray.data.packing import pack
from sppo_ray.rollout.weight_sync import WeightMismatch
from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.trainer.logprob_check import (
    CHECKED_SAMPLES,
    check_first_batch,
    checked_samples,
    comparable_tokens,
    first_batch_limit,
)
from sppo_ray.types import Minibatch, TrainingSample
from tests.training_data import random_samples, training_sample
from tests.unit.fakes import FakeLearner
from tests.unit.trainer.test_loop import Run


def sampled(worker: str, logprobs: tuple[float, ...], *, began: int = 4, ended: int = 4) -> TrainingSample:
    sample = training_sample("p", [1], [5] * len(logprobs), logprobs, 1.0, 0.5)
    trajectory = replace(
        sample.scored.trajectory, worker=worker, policy_version=began, policy_version_end=ended
    )
    return replace(sample, scored=replace(sample.scored, trajectory=trajectory))


def test_only_tokens_of_the_present_weights_are_compared() -> None:
    three = (-1.0, -2.0, -3.0)
    assert comparable_tokens(sampled("a", three).scored.trajectory, 4) == 3
    assert comparable_tokens(sampled("a", three, began=2, ended=2).scored.trajectory, 4) == 0
    # A sync came in between: where in the response is not recorded, but the last token was sampled
    # after it.
    assert comparable_tokens(sampled("a", three, began=3, ended=4).scored.trajectory, 4) == 1


def test_the_mean_of_the_worst_engine_is_what_counts() -> None:
    samples = [
        sampled("rollout-0", (-1.0, -2.0)),
        sampled("rollout-1", (-1.0, -2.0, -3.0)),
        sampled("rollout-1", (-9.0, -2.5), began=3),  # only its last token counts
        sampled("rollout-0", (-9.0,), began=2, ended=3),  # does not count at all
    ]
    own = [(-1.0, -2.0), (-1.25, -2.0, -3.25), (-1.0, -2.0), (-1.0,)]
    # rollout-0: 0 over 2 tokens. rollout-1: (0.25 + 0 + 0.25 + 0.5) / 4 = 0.25.
    found = check_first_batch(samples, own, version=4, limit=0.3)
    assert (found.tokens, found.difference) == (6, 0.25)
    with pytest.raises(
        WeightMismatch,
        match="first 4 tokens .* at policy version 4 differ .* by 0.25 on average, allowed 0.2",
    ) as caught:
        check_first_batch(samples, own, version=4, limit=0.2)
    assert caught.value.worker == "rollout-1"


def test_what_is_not_a_number_is_no_match() -> None:
    samples = [sampled("rollout-0", (-1.0,)), sampled("rollout-1", (math.nan,))]
    with pytest.raises(WeightMismatch) as caught:
        check_first_batch(samples, [(-1.5,), (-1.0,)], version=4, limit=1.0)
    assert caught.value.worker == "rollout-1"


def test_stale_samples_leave_nothing_to_compare() -> None:
    found = check_first_batch([sampled("a", (-1.0,), began=3, ended=3)], [(-7.0,)], version=4, limit=1e-3)
    assert (found.tokens, found.difference) == (0, 0.0)


def test_the_limit_follows_dtype_and_temperature() -> None:
    assert first_batch_limit("float32", 1.0, None) == 1e-3
    assert first_batch_limit("bfloat16", 1.5, None) == 0.2
    # At temperature 1/2 a difference of the logits counts twice.
    assert first_batch_limit("bfloat16", 0.5, None) == 0.4
    # the user's own number is the user's own
    assert first_batch_limit("float32", 0.5, 0.05) == 0.05


@dataclass
class ShiftedLearner(FakeLearner):
    """Its log-probs are the engine's, but `shift` nats less from policy version `since` on."""

    shift: float = 0.0
    since: int = 0
    version: int = 0

    async def publish(self, version: int):
        self.version = version
        return await super().publish(version)

    async def recompute_logprobs(self, minibatch: Minibatch) -> Minibatch:
        minibatch = await super().recompute_logprobs(minibatch)
        shift = self.shift if self.version >= self.since else 0.0
        shards = tuple(
            tuple(
                replace(micro, old_logprobs=micro.old_logprobs - np.float32(shift)) for micro in shard
            )
            for shard in minibatch.ranks
        )
        return replace(minibatch, ranks=shards)


@pytest.mark.parametrize("old_logprobs", ["rollout", "learner"])
def test_a_step_that_fails_the_gate_is_not_trained_on(tmp_path: Path, old_logprobs: str) -> None:
    run = Run(tmp_path, "--loop.steps=3", f"--algorithm.old_logprobs={old_logprobs}")
    run.learner = ShiftedLearner(run.log, shift=0.01, since=1)
    with pytest.raises(
        WeightMismatch, match="rollout-0: log-probs of the first 4 tokens .* at policy version 1"
    ):
        run.train()
    # Step 1 was two updates of policy and critic; of step 2 there was none of either.
    assert (len(run.learner.updates), len(run.critic.batches)) == (2, 2)
    assert run.log[-1] == "distrust rollout-0"
    (row,) = read_metrics(run.path)
    assert (row["mismatch/first_batch_difference"], row["mismatch/first_batch_tokens"]) == (0.0, 4)


def test_the_gate_can_be_widened_and_goes_with_verify(tmp_path: Path) -> None:
    for index, setting in enumerate(
        ["--weight_sync.max_first_batch_difference=0.02", "--weight_sync.verify=false"]
    ):
        (tmp_path / str(index)).mkdir()
        run = Run(tmp_path / str(index), "--loop.steps=1", setting)
        run.learner = ShiftedLearner(run.log, shift=0.01)
        run.train()
        (row,) = read_metrics(run.path)
        assert row.get("mismatch/first_batch_difference") == (pytest.approx(0.01) if index == 0 else None)


def test_the_check_costs_at_most_one_forward_per_step(tmp_path: Path) -> None:
    counts = {}
    for source in ("rollout", "learner"):
        (tmp_path / source).mkdir()
        run = Run(tmp_path / source, "--loop.steps=3", f"--algorithm.old_logprobs={source}")
        run.train()
        counts[source] = run.log.count("recompute")
    assert counts == {"rollout": 3, "learner": 3 * 2}  # two minibatches a step


def test_stale_samples_are_trained_on_without_a_forward(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=4", "--loop.max_staleness=1")
    run.train()
    # Step 1 trains on samples of version 0 at version 0; every later one on samples that are a
    # version behind.
    assert run.log.count("recompute") == 1
    assert [row.get("mismatch/first_batch_tokens") for row in read_metrics(run.path)] == [4, None, None, None]


def test_logprobs_come_back_in_the_order_of_the_samples() -> None:
    from sppo_ray.data.packing import unpack_logprobs

    samples = random_samples(23, seed=1)
    for ranks in (1, 2, 3):
        packed = pack(samples, ranks, 40)
        wanted = [np.float32(s.scored.trajectory.response_logprobs).tolist() for s in samples]
        assert [row.tolist() for row in unpack_logprobs(packed, samples, 40)] == wanted


def test_a_few_samples_of_each_engine_are_checked() -> None:
    samples = [
        replace(
            one,
            scored=replace(
                one.scored, trajectory=replace(one.scored.trajectory, worker=f"rollout-{index % 2}")
            ),
        )
        for index, one in enumerate(random_samples(50, seed=2))
    ]
    checked = checked_samples(samples, 0)
    workers = [one.scored.trajectory.worker for one in checked]
    assert workers.count("rollout-0") == workers.count("rollout-1") == CHECKED_SAMPLES
    assert checked_samples(samples, 3) == []
