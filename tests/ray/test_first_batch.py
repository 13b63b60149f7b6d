"""The check of the first batch with a real engine and learner detects faults that digest and probe
miss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from actors.learner import LearnerRank
from sppo_ray.config import LearnerSettings, RunConfig, SPPOSettings
from sppo_ray.config.loading import load_config
from sppo_ray.protocols import PublishedWeights
from sppo_ray.rollout.weight_sync import ProbeTolerance, WeightMismatch, verify_receipt
from sppo_ray.trainer.logprob_check import LogprobCheck
from sppo_ray.types import Minibatch, Prompt, ScoredTrajectory, TrainingSample
from tests.ray.conftest import Engine
from tests.ray.engine_models import generate, perturbed, publish, pull, requests

TEMPERATURE = 0.7
MICROBATCH = 512


class InThisProcess:
    """One learner rank behind the one verb that the gate needs."""

    def __init__(self, rank: LearnerRank) -> None:
        self.rank = rank

    async def recompute_logprobs(self, minibatch: Minibatch) -> Minibatch:
        (shard,) = minibatch.ranks
        rows = self.rank.logprobs(shard)
        return replace(
            minibatch,
            ranks=(tuple(replace(m, old_logprobs=r) for m, r in zip(shard, rows, strict=True)),),
        )

    def publish(self, version: int) -> PublishedWeights:
        manifest, flat, (token_ids, logprobs) = self.rank.flat_weights(version)
        return PublishedWeights(manifest, flat, token_ids, logprobs)


@pytest.fixture
def learner(qwen: Engine, tmp_path: Path) -> Iterator[InThisProcess]:
    """Another policy than the engine's."""
    perturbed(qwen.initial, 80).save_pretrained(tmp_path)
    rank = LearnerRank(
        0,
        1,
        LearnerSettings(model=str(tmp_path), max_tokens_per_microbatch=MICROBATCH),
        model_path=str(tmp_path),
        algorithm=SPPOSettings(),
        temperature=TEMPERATURE,
        max_response_tokens=24,
        total_updates=1,
        seed=1,
        sync_dtype="float32",
    )
    rank.setup(*rank.address())
    yield InThisProcess(rank)
    rank.close()
    ray.get(qwen.actor.repair.remote())


@pytest.fixture
def config() -> RunConfig:
    small = ["--data.max_prompt_tokens=100", f"--learner.max_tokens_per_microbatch={MICROBATCH}"]
    return load_config("quickstart", [f"--rollout.temperature={TEMPERATURE}", *small])


def first_batch(engine: Engine) -> list[TrainingSample]:
    """Eight responses to prompts of 100 tokens, three KV blocks of 32 and some."""
    batch = requests(8, length=100)
    found = {
        trajectory.request_id: trajectory
        for trajectory in generate(engine.actor, batch, temperature=TEMPERATURE)
    }
    samples = []
    for request in batch:
        prompt = Prompt(request.prompt_id, "test", "", request.token_ids, request.token_ids, "")
        scored = ScoredTrajectory(prompt, found[request.request_id], "", 1.0, "", 0.0, None)
        samples.append(TrainingSample(scored, 1.0, 1.0))
    return samples


def test_an_engine_that_goes_on_from_old_kv_blocks_is_named_before_anything_is_trained_on(
    qwen: Engine, learner: InThisProcess, config: RunConfig
) -> None:
    gate = LogprobCheck(config, learner)  # type: ignore[arg-type]  # all that it asks of a learner
    pull(qwen.actor, publish(qwen.initial, 79))
    first_batch(qwen)  # the prompts' blocks are those of version 79 now
    ray.get(qwen.actor.damage.remote("keep prefix cache"))
    published = learner.publish(80)
    receipt = pull(qwen.actor, published)
    assert verify_receipt(published, receipt, ProbeTolerance.for_dtype("float32")) < 2e-5
    with pytest.raises(
        WeightMismatch, match="rollout-qwen: log-probs of the first .* sampled at policy version 80"
    ) as caught:
        asyncio.run(gate.check(first_batch(qwen), None, version=80))
    assert caught.value.worker == "rollout-qwen"

    ray.get(qwen.actor.repair.remote())
    pull(qwen.actor, learner.publish(81))
    figures = asyncio.run(gate.check(samples := first_batch(qwen), None, version=81))
    # float32 and temperature 0.7: rounding alone, hundreds of times below the limit of 1e-3 / 0.7
    assert figures["mismatch/first_batch_difference"] < 5e-6
    assert (
        figures["mismatch/first_batch_tokens"]
        == sum(len(s.scored.trajectory.response_ids) for s in samples)
        > 50
    )
    # One version later the same samples are stale: there is nothing to compare them with.
    assert asyncio.run(gate.check(samples, None, version=82)) == {}
