"""The frozen starting policy equals the learner that starts from it, through the loop's
adapters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.handles import LearnerGroup, Ranks, ReferenceGroup
from actors.learner import LearnerRank
from actors.reference import ReferenceActor, ReferenceRank
from sppo_ray.algorithms.base import KLSettings
from sppo_ray.algorithms.sppo import SPPOSettings
from sppo_ray.config import LearnerSettings, OptimizerSettings, ReferenceSettings
from sppo_ray.data.packing import pack
from sppo_ray.errors import UserError
from sppo_ray.types import Minibatch
from tests.ray.rank_groups import Group
from tests.training_data import random_samples, save_llama

COMMON: dict[str, Any] = {"attention": "auto", "temperature": 0.7}
KL = SPPOSettings(kl=KLSettings(coefficient=0.1, estimator="k3"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def reference(ray_cluster: Any, hosts: Any, llama: Path) -> Iterator[ReferenceGroup]:
    """Two copies: an actor of its own, and a process that other tests use, too."""
    keywords = {"model_path": str(llama), **COMMON}
    actor, shared = (
        ReferenceActor.options(num_cpus=0.1).remote(0, ReferenceSettings(), **keywords),
        hosts[1][0],
    )
    ray_cluster.get(shared.start.remote(ReferenceRank, 1, ReferenceSettings(), **keywords), timeout=120)
    group = ReferenceGroup([actor, shared], timeout_s=120)
    asyncio.run(group.ready(120))
    yield group
    ray_cluster.kill(actor)


def learner_arguments(llama: Path) -> dict[str, Any]:
    settings = LearnerSettings(
        model=str(llama), optimizer=OptimizerSettings(lr=1e-3), max_tokens_per_microbatch=128
    )
    common = {
        "model_path": str(llama),
        "total_updates": 9,
        "seed": 1,
        "sync_dtype": "float32",
        "max_response_tokens": 20,
    }
    return {"settings": settings, "algorithm": KL, "temperature": COMMON["temperature"]} | common


def columns(batch: Minibatch, name: str) -> list[list[float]]:
    return [getattr(micro, name).tolist() for shard in batch.ranks for micro in shard]


def minibatch(count: int = 9) -> Minibatch:
    return pack(random_samples(count, seed=0), 2, 128)


def test_at_version_0_it_says_what_the_learner_says_and_the_kl_is_0(
    ray_cluster: Any, hosts: Any, llama: Path, reference: ReferenceGroup
) -> None:
    group = Group(ray_cluster, hosts[2], LearnerRank, learner_arguments(llama))
    learner = LearnerGroup(Ranks("learner", hosts[2], timeout_s=120), tokenizer_path=str(llama))
    batch = asyncio.run(reference.logprobs(minibatch()))
    own = asyncio.run(learner.recompute_logprobs(batch))
    for shard in own.ranks:
        for micro in shard:
            # to the bit: the same rows in a micro-batch
            assert micro.reference_logprobs.tolist() == micro.old_logprobs.tolist()
            assert micro.old_logprobs.tolist() != micro.rollout_logprobs.tolist()
    # nothing else of the minibatch is touched
    assert replace(batch, ranks=()) == replace(minibatch(), ranks=())
    assert columns(batch, "rollout_logprobs") == columns(minibatch(), "rollout_logprobs")

    first = group.update_policy(own)[0]
    # exp(-0) - 1 + 0: the policy is the reference
    assert (first["kl_reference"], first["approx_kl_k3"]) == (0.0, 0.0)
    second = group.update_policy(own)[0]
    assert second["kl_reference"] > 0.0
    # the reference stays where it was
    again = asyncio.run(reference.logprobs(minibatch()))
    assert columns(again, "reference_logprobs") == columns(batch, "reference_logprobs")
    group.all("close")


def test_a_rank_without_samples_gets_an_answer_for_its_filler(reference: ReferenceGroup) -> None:
    batch = asyncio.run(reference.logprobs(minibatch(count=1)))
    assert [len(micro.reference_logprobs) for (micro,) in batch.ranks][1] == 1


def test_it_tells_its_memory(reference: ReferenceGroup) -> None:
    memory = asyncio.run(reference.memory())
    assert list(memory) == ["reference-0", "reference-1"]
    # a process with torch in it
    assert all(100 * 2**20 < peak < 64 * 2**30 for peak in memory.values())


def test_a_model_that_does_not_load_is_named_with_the_worker(
    ray_cluster: Any, hosts: Any, tmp_path: Path
) -> None:
    host, nowhere = hosts[2][0], str(tmp_path / "nowhere")
    ray_cluster.get(
        host.start.remote(ReferenceRank, 0, ReferenceSettings(), model_path=nowhere, **COMMON), timeout=60
    )
    with pytest.raises(UserError, match="reference-0: .*nowhere: no such directory"):
        asyncio.run(ReferenceGroup([host], timeout_s=60).ready(60))
