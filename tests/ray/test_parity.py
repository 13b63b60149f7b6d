"""The distributed path against the single-file reference, and two ranks against one, on the same trajectories.

The ranks are LearnerRank and CriticRank on real DeepSpeed, in two Ray processes that serve all tests of this file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors.critic import CriticRank
from actors.learner import LearnerRank
from sppo_ray.algorithms.sppo import advantages
from sppo_ray.config import CriticSettings, LearnerSettings, OptimizerSettings, SPPOSettings
from sppo_ray.data.batching import pack
from sppo_ray.types import Minibatch, TrainingSample
from tests.reference_sppo import PromptCritic, Sample, update_critic, update_policy
from tests.training_data import random_samples, save_llama, save_qwen

# eps: see test_learner.py. No weight decay and clipping at 1, as in the reference.
OPTIMIZER = OptimizerSettings(lr=1e-3, eps=1e-5, betas=(0.9, 0.95))
ADAM = {"lr": 1e-3, "eps": 1e-5, "betas": (0.9, 0.95), "weight_decay": 0.0}
TEMPERATURE = 0.7
UPDATES = 3
SHAPES = pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (2, 2), (2, 3)])


class RankHost:
    """A process for one rank of one group after another."""

    def start(self, rank_class: type, rank: int, world_size: int, arguments: dict[str, Any]) -> tuple[str, int]:
        self.rank = rank_class(rank, world_size, **arguments)
        return self.rank.address()

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.rank, method)(*arguments)


class Group:
    """The ranks of one learner or critic, called together."""

    def __init__(self, ray: Any, hosts: Sequence[Any], rank_class: type, arguments: dict[str, Any]) -> None:
        self.ray, self.hosts = ray, hosts
        starts = [host.start.remote(rank_class, rank, len(hosts), arguments) for rank, host in enumerate(hosts)]
        self.all("setup", *ray.get(starts, timeout=120)[0])

    def each(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        calls = [host.call.remote(method, *own) for host, own in zip(self.hosts, arguments, strict=True)]
        return self.ray.get(calls, timeout=120)

    def all(self, method: str, *arguments: Any) -> list[Any]:
        return self.each(method, [arguments] * len(self.hosts))

    def update_policy(self, batch: Minibatch) -> list[dict[str, float]]:
        return self.each("update", [(shard, batch.num_global_tokens, batch.num_global_samples) for shard in batch.ranks])

    def update_critic(self, prompts: Sequence[tuple[int, ...]], rewards: Sequence[float]) -> list[dict[str, float]]:
        count = len(self.hosts)
        return self.each("update", [(prompts[rank::count], rewards[rank::count], len(prompts)) for rank in range(count)])

    def weights(self) -> np.ndarray:
        return self.all("flat_weights", 1)[0][1].view(np.float32)


@pytest.fixture(scope="module")
def hosts(ray_cluster: Any) -> Iterator[dict[int, list[Any]]]:
    """Processes for a group of 1 and for groups of 2; a process stays in the process group that it joined."""
    host_class = ray_cluster.remote(RankHost)
    made = {count: [host_class.options(num_cpus=1).remote() for _ in range(count)] for count in (1, 2)}
    yield made
    for handle in [*made[1], *made[2]]:
        ray_cluster.kill(handle)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def learner_arguments(model: Path, stage: int = 0) -> dict[str, Any]:
    settings = LearnerSettings(model=str(model), optimizer=OPTIMIZER, zero_stage=stage, max_tokens_per_microbatch=128)
    common = {"model_path": str(model), "total_updates": 10, "seed": 1, "sync_dtype": "float32"}
    return {"settings": settings, "algorithm": SPPOSettings(), "temperature": TEMPERATURE} | common


def critic_arguments(model: Path, stage: int = 0) -> dict[str, Any]:
    settings = CriticSettings(model=str(model), optimizer=OPTIMIZER, zero_stage=stage, max_tokens_per_microbatch=40)
    return {"settings": settings, "model_path": str(model), "total_updates": 10, "seed": 1}


def reference_samples(samples: Sequence[TrainingSample]) -> list[Sample]:
    rows = [sample.scored for sample in samples]
    return [
        Sample(row.prompt.token_ids, row.trajectory.response_ids, row.trajectory.response_logprobs, row.reward, row.value.value)
        for row in rows
    ]


def prompts_and_rewards(samples: Sequence[TrainingSample]) -> tuple[list[tuple[int, ...]], list[float]]:
    return [s.scored.prompt.critic_token_ids for s in samples], [s.scored.reward for s in samples]


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def flat(parameters: Any) -> np.ndarray:
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters]).numpy()


def test_advantages_are_the_references() -> None:
    samples = random_samples(20, seed=0)
    expected = [sample.advantage for sample in reference_samples(samples)]
    assert advantages([s.scored.reward for s in samples], [s.scored.value.value for s in samples]) == expected


@SHAPES
def test_the_policy_goes_where_the_references_does(ray_cluster: Any, hosts: Any, llama: Path, ranks: int, stage: int) -> None:
    group = Group(ray_cluster, hosts[ranks], LearnerRank, learner_arguments(llama, stage))
    reference = AutoModelForCausalLM.from_pretrained(llama)
    start, optimizer = flat(reference.parameters()), torch.optim.AdamW(reference.parameters(), **ADAM)
    for seed in range(UPDATES):
        samples = random_samples(11, seed)
        batch = pack(samples, ranks, 128)
        assert len(batch.ranks[0]) > 1
        rows = group.update_policy(batch)
        assert all({**row, "seconds": 0} == {**rows[0], "seconds": 0} for row in rows)
        expected = update_policy(reference, optimizer, reference_samples(samples), temperature=TEMPERATURE)
        assert rows[0]["loss"] == pytest.approx(expected, rel=1e-5, abs=1e-7)
    ours, theirs = group.weights(), flat(reference.parameters())
    assert relative_difference(ours, theirs) <= 1e-5
    assert relative_difference(ours - start, theirs - start) <= 1e-3  # of the way that they went, too
    group.all("close")


@SHAPES
def test_the_critic_goes_where_the_references_does(
    ray_cluster: Any, hosts: Any, llama: Path, tmp_path: Path, ranks: int, stage: int
) -> None:
    group = Group(ray_cluster, hosts[ranks], CriticRank, critic_arguments(llama, stage))
    reference = PromptCritic(str(llama))
    optimizer = torch.optim.AdamW(reference.parameters(), **ADAM)
    for seed in range(UPDATES):
        prompts, rewards = prompts_and_rewards(random_samples(11, seed))
        rows = group.update_critic(prompts, rewards)
        assert all({**row, "seconds": 0} == {**rows[0], "seconds": 0} for row in rows)
        assert rows[0]["loss"] == pytest.approx(update_critic(reference, optimizer, prompts, rewards), rel=1e-5)
    prompts, _ = prompts_and_rewards(random_samples(7, seed=9))
    values = group.each("values", [(prompts[rank::ranks],) for rank in range(ranks)])
    with torch.no_grad():
        expected = reference(prompts).tolist()
    assert [values[i % ranks][i // ranks] for i in range(7)] == pytest.approx(expected, rel=1e-4, abs=1e-5)

    group.all("export", str(tmp_path / "critic"), str(llama))
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic")
    theirs = flat([*reference.trunk.parameters(), *reference.head.parameters()])
    assert relative_difference(flat(exported.parameters()), theirs) <= 1e-5
    group.all("close")


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_skip_save_resume_and_export_as_one(ray_cluster: Any, hosts: Any, tmp_path: Path, stage: int) -> None:
    model = save_qwen(tmp_path / "qwen")
    group = Group(ray_cluster, hosts[2], LearnerRank, learner_arguments(model, stage))
    group.update_policy(pack(random_samples(9, seed=0), 2, 128))
    before = group.weights()

    batch = pack(random_samples(9, seed=1), 2, 128)
    bad = replace(batch.ranks[1][0], advantages=(math.nan,) * len(batch.ranks[1][0].advantages))
    rows = group.update_policy(replace(batch, ranks=(batch.ranks[0], (bad, *batch.ranks[1][1:]))))
    assert [row["skipped"] for row in rows] == [1.0, 1.0]  # one rank's bad gradient holds up both
    np.testing.assert_array_equal(group.weights(), before)

    group.all("save", str(tmp_path / "state"))
    expected = group.update_policy(batch)[0]
    after = group.weights()
    group.all("load", str(tmp_path / "state"))
    assert group.update_policy(batch)[0]["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    np.testing.assert_allclose(group.weights(), after, atol=1e-6)

    manifests = [parts[0] for parts in group.all("flat_weights", 2)]
    assert manifests[1] is None and "lm_head.weight" not in manifests[0].names  # tied: listed once
    group.all("export", str(tmp_path / "policy"), str(model))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert manifests[0].names == tuple(name for name, _ in plain.named_parameters())
    np.testing.assert_array_equal(flat(plain.parameters()), group.weights())
    group.all("close")


def test_a_rank_without_samples_takes_part(ray_cluster: Any, hosts: Any, llama: Path) -> None:
    learner = Group(ray_cluster, hosts[2], LearnerRank, learner_arguments(llama, stage=2))
    sample = random_samples(1, seed=0)
    rows = learner.update_policy(pack(sample, 2, 128))
    reference = AutoModelForCausalLM.from_pretrained(llama)
    optimizer = torch.optim.AdamW(reference.parameters(), **ADAM)
    expected = update_policy(reference, optimizer, reference_samples(sample), temperature=TEMPERATURE)
    assert [row["loss"] for row in rows] == pytest.approx([expected] * 2, rel=1e-5)
    assert relative_difference(learner.weights(), flat(reference.parameters())) <= 1e-5
    learner.all("close")
    critic = Group(ray_cluster, hosts[2], CriticRank, critic_arguments(llama, stage=3))
    assert critic.each("values", [([(5, 6), (7,)],), ([],)]) == [[0.0, 0.0], []]
    assert critic.update_critic([(5, 6)], [1.0])[1]["loss"] == pytest.approx(math.log(2.0))
    critic.all("close")
