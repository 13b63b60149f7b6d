"""The distributed path against the single-file reference, and two ranks against one, on equal
trajectories.

The ranks are LearnerRank and CriticRank on real DeepSpeed, in Ray processes shared by the tests.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors.critic import CriticRank
from actors.learner import LearnerRank
from sppo_ray.algorithms.base import KLSettings, RewardedSample
from sppo_ray.algorithms.grpo import GRPOSettings
from sppo_ray.algorithms.ppo import PPOSettings
from sppo_ray.algorithms.sppo import advantages
from sppo_ray.config import CriticSettings, LearnerSettings, OptimizerSettings, SPPOSettings
from sppo_ray.data.packing import pack
from sppo_ray.types import Minibatch, TokenRows, TrainingSample
from tests.ray.rank_groups import Group
from tests.reference_algorithms import Options, Rows
from tests.reference_algorithms import loss as training_loss
from tests.reference_ppo import logprobs_and_entropies
from tests.reference_sppo import PromptCritic, Sample, descend, update_critic, update_policy
from tests.training_data import random_samples, save_llama, save_qwen

# eps: see test_learner.py. No weight decay and clipping at 1, as in the reference.
OPTIMIZER = OptimizerSettings(lr=1e-3, eps=1e-5, betas=(0.9, 0.95))
ADAM = {"lr": 1e-3, "eps": 1e-5, "betas": (0.9, 0.95), "weight_decay": 0.0}
TEMPERATURE = 0.7
UPDATES = 3
SHAPES = pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (2, 2), (2, 3)])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def learner_arguments(model: Path, stage: int = 0) -> dict[str, Any]:
    settings = LearnerSettings(
        model=str(model), optimizer=OPTIMIZER, zero_stage=stage, max_tokens_per_microbatch=128
    )
    common = {
        "model_path": str(model),
        "total_updates": 10,
        "seed": 1,
        "sync_dtype": "float32",
        "max_response_tokens": 20,
    }
    return {"settings": settings, "algorithm": SPPOSettings(), "temperature": TEMPERATURE} | common


def critic_arguments(model: Path, stage: int = 0) -> dict[str, Any]:
    settings = CriticSettings(
        model=str(model), optimizer=OPTIMIZER, zero_stage=stage, max_tokens_per_microbatch=40
    )
    return {"settings": settings, "model_path": str(model), "total_updates": 10, "seed": 1}


def reference_samples(samples: Sequence[TrainingSample]) -> list[Sample]:
    rows = [sample.scored for sample in samples]
    return [
        Sample(
            row.prompt.token_ids,
            row.trajectory.response_ids,
            row.trajectory.response_logprobs,
            row.reward,
            row.value.value,
        )
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
    rewarded = [
        RewardedSample(s.scored.group, s.scored.reward, 1, value=s.scored.value.value) for s in samples
    ]
    assert advantages(rewarded, SPPOSettings()) == expected


@SHAPES
def test_the_policy_goes_where_the_references_does(
    ray_cluster: Any, hosts: Any, llama: Path, ranks: int, stage: int
) -> None:
    group = Group(ray_cluster, hosts[ranks], LearnerRank, learner_arguments(llama, stage))
    reference = AutoModelForCausalLM.from_pretrained(llama)
    start, optimizer = flat(reference.parameters()), torch.optim.AdamW(reference.parameters(), **ADAM)
    for seed in range(UPDATES):
        samples = random_samples(11, seed)
        batch = pack(samples, ranks, 48)
        assert len(batch.ranks[0]) > 1
        rows = group.update_policy(batch)
        assert all({**row, "seconds": 0} == {**rows[0], "seconds": 0} for row in rows)
        expected = update_policy(reference, optimizer, reference_samples(samples), temperature=TEMPERATURE)
        assert rows[0]["loss"] == pytest.approx(expected, rel=1e-5, abs=1e-7)
    ours, theirs = group.weights(), flat(reference.parameters())
    assert relative_difference(ours, theirs) <= 1e-5
    # of the way that they went, too
    assert relative_difference(ours - start, theirs - start) <= 1e-3
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
        assert rows[0]["loss"] == pytest.approx(
            update_critic(reference, optimizer, prompts, rewards), rel=1e-5
        )
    prompts, _ = prompts_and_rewards(random_samples(7, seed=9))
    values = group.each("values", [(TokenRows.of(prompts[rank::ranks]),) for rank in range(ranks)])
    with torch.no_grad():
        expected = reference(prompts).tolist()
    assert [values[i % ranks][i // ranks] for i in range(7)] == pytest.approx(expected, rel=1e-4, abs=1e-5)

    group.all("export", str(tmp_path / "critic"), str(llama))
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic")
    theirs = flat([*reference.trunk.parameters(), *reference.head.parameters()])
    assert relative_difference(flat(exported.parameters()), theirs) <= 1e-5
    group.all("close")


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_skip_save_resume_and_export_as_one(
    ray_cluster: Any, hosts: Any, tmp_path: Path, stage: int
) -> None:
    model = save_qwen(tmp_path / "qwen")
    group = Group(ray_cluster, hosts[2], LearnerRank, learner_arguments(model, stage))
    group.update_policy(pack(random_samples(9, seed=0), 2, 128))
    before = group.weights()

    batch = pack(random_samples(9, seed=1), 2, 128)
    micro = batch.ranks[1][0]
    bad = replace(micro, advantages=np.full_like(micro.advantages, np.nan))
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
    values = critic.each("values", [(TokenRows.of([(5, 6), (7,)]),), (TokenRows.of([]),)])
    assert [row.tolist() for row in values] == [[0.0, 0.0], []]
    assert critic.update_critic([(5, 6)], [1.0])[1]["loss"] == pytest.approx(math.log(2.0))
    critic.all("close")


# Everything that a loss can be made of: per-token advantages with a KL penalty and an entropy
# bonus, as PPO's; and sequence-level ratios, a constant divisor and truncated importance, as a
# group method's.
TERMS = {
    "ppo": (
        PPOSettings(kl=KLSettings(coefficient=0.1, estimator="k3"), entropy_coefficient=0.02),
        Options(kl_coefficient=0.1, kl_estimator="k3", entropy_coefficient=0.02),
    ),
    "grpo": (
        GRPOSettings(
            ratio="sequence",
            loss_aggregation="constant",
            clip_high=0.28,
            old_logprobs="learner",
            importance_cap=1.1,
            kl=KLSettings(coefficient=0.05, estimator="k2"),
        ),
        Options(
            ratio="sequence",
            loss_aggregation="constant",
            clip_high=0.28,
            importance_cap=1.1,
            kl_coefficient=0.05,
            kl_estimator="k2",
            max_response_tokens=20,
        ),
    ),
}


def samples_of_an_algorithm(name: str) -> list[TrainingSample]:
    """Per-token advantages for ppo, one a response for grpo."""
    draw = random.Random(5)

    def advantage(length: int) -> float | np.ndarray:
        tokens = [draw.gauss(0.0, 1.0) for _ in range(length if name == "ppo" else 1)]
        return np.array(tokens) if name == "ppo" else tokens[0]

    return [
        replace(s, advantage=advantage(len(s.scored.trajectory.response_ids)))
        for s in random_samples(9, seed=4)
    ]


def nearby(logprobs: Sequence[float], by: float) -> np.ndarray:
    """Log-probs of another policy: deterministic, so that they are the same however the samples are
    sharded.
    """
    values = np.asarray(logprobs, dtype=np.float32).astype(np.float64)
    return (values + by * np.sin(100.0 * values)).astype(np.float32)


def with_other_policies(batch: Minibatch) -> Minibatch:
    """pi_old and the reference a little away from the engine's log-probs."""
    shards = tuple(
        tuple(
            replace(
                m,
                old_logprobs=nearby(m.rollout_logprobs, 0.1),
                reference_logprobs=nearby(m.rollout_logprobs, 0.3),
            )
            for m in shard
        )
        for shard in batch.ranks
    )
    return replace(batch, ranks=shards)


def plain_loss(model: Any, samples: Sequence[TrainingSample], options: Options) -> torch.Tensor:
    def padded(rows: Sequence[Any]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True)

    scored = [sample.scored for sample in samples]
    engine = tuple(row.trajectory.response_logprobs for row in scored)
    pairs = [
        logprobs_and_entropies(model, s.prompt.token_ids, s.trajectory.response_ids, TEMPERATURE)
        for s in scored
    ]
    rows = Rows(
        logprobs_BT=padded([logprobs for logprobs, _ in pairs]),
        old_BT=padded([nearby(row, 0.1) for row in engine]),
        rollout_BT=padded(engine),
        reference_BT=padded([nearby(row, 0.3) for row in engine]),
        entropies_BT=padded([entropies for _, entropies in pairs]),
        advantages_BT=padded([sample.token_advantages for sample in samples]),
        lengths_B=[len(row) for row in engine],
    )
    return training_loss(rows, options)


@pytest.mark.parametrize(("name", "ranks", "stage"), [("ppo", 1, 0), ("ppo", 2, 3), ("grpo", 2, 0)])
def test_every_term_of_the_loss_is_the_references(
    ray_cluster: Any, hosts: Any, llama: Path, name: str, ranks: int, stage: int
) -> None:
    algorithm, options = TERMS[name]
    group = Group(
        ray_cluster, hosts[ranks], LearnerRank, learner_arguments(llama, stage) | {"algorithm": algorithm}
    )
    reference = AutoModelForCausalLM.from_pretrained(llama)
    start, optimizer = flat(reference.parameters()), torch.optim.AdamW(reference.parameters(), **ADAM)
    samples = samples_of_an_algorithm(name)
    rows = group.update_policy(with_other_policies(pack(samples, ranks, 128)))
    expected = descend(reference, optimizer, plain_loss(reference, samples, options))
    assert [row["loss"] for row in rows] == pytest.approx([expected] * ranks, rel=1e-5, abs=1e-6)
    assert rows[0]["kl_reference"] > 0.0
    ours, theirs = group.weights(), flat(reference.parameters())
    assert relative_difference(ours, theirs) <= 1e-5
    assert relative_difference(ours - start, theirs - start) <= 1e-3
    group.all("close")
