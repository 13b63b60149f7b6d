"""LoRA on real learner and critic ranks: parity with PEFT and torch, ranks and stages, checkpoints,
exports, a real engine, and whole runs.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors.critic import CriticRank
from actors.learner import LearnerRank
from sppo_ray.config import CriticSettings, LearnerSettings, LoraSettings, OptimizerSettings, SPPOSettings
from sppo_ray.config.loading import load_config
from sppo_ray.data.packing import pack
from sppo_ray.errors import UserError
from sppo_ray.models.bundled import resolve_model
from sppo_ray.models.lora import whole_parameters
from sppo_ray.rollout.weight_digest import flat_digest
from sppo_ray.rollout.weight_sync import ProbeTolerance, WeightMismatch, verify_receipt
from sppo_ray.trainer.logprob_check import LogprobCheck
from sppo_ray.types import Minibatch, TokenRows
from tests.ray.conftest import Engine
from tests.ray.engine_models import publish, pull
from tests.ray.rank_groups import Group
from tests.ray.test_first_batch import InThisProcess, first_batch
from tests.ray.test_parity import prompts_and_rewards, reference_samples
from tests.ray.test_replay import sppo_ray
from tests.reference_sppo import descend, sequence_logprobs, update_policy
from tests.training_data import random_samples, save_llama, save_qwen

# eps: see test_learner.py
OPTIMIZER = OptimizerSettings(lr=1e-2, eps=1e-5, betas=(0.9, 0.95))
ADAM = {"lr": 1e-2, "eps": 1e-5, "betas": (0.9, 0.95), "weight_decay": 0.0}
LORA = LoraSettings(rank=4, alpha=8.0)
TEMPERATURE = 0.7
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# of the models of tests/training_data.py: 2 layers of rank 4 x (2 x 64 + 2 x 48 + 3 x 80)
NUM_TRAINED = 2 * 4 * 464


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 with a tied head and biases in the attention."""
    return save_qwen(tmp_path_factory.mktemp("qwen"))


def learner_arguments(model: Path, **settings: Any) -> dict[str, Any]:
    settings = {"optimizer": OPTIMIZER, "max_tokens_per_microbatch": 128, "lora": LORA} | settings
    return {
        "settings": LearnerSettings(model=str(model), **settings),
        "model_path": str(model),
        "algorithm": SPPOSettings(),
        "temperature": TEMPERATURE,
        "max_response_tokens": 20,
        "total_updates": 100,
        "seed": 1,
        "sync_dtype": "float32",
    }


def critic_arguments(model: Path, **settings: Any) -> dict[str, Any]:
    settings = {"optimizer": OPTIMIZER, "max_tokens_per_microbatch": 40, "lora": LORA} | settings
    settings = CriticSettings(model=str(model), **settings)
    return {"settings": settings, "model_path": str(model), "total_updates": 10, "seed": 1}


def started(model: Path, **settings: Any) -> LearnerRank:
    learner = LearnerRank(0, 1, **learner_arguments(model, **settings))
    learner.setup(*learner.address())
    return learner


def started_critic(model: Path, **settings: Any) -> CriticRank:
    critic = CriticRank(0, 1, **critic_arguments(model, **settings))
    critic.setup(*critic.address())
    return critic


def minibatch(seed: int, ranks: int = 1) -> Minibatch:
    return pack(random_samples(9, seed), ranks, 128)


def update(learner: LearnerRank, seed: int) -> dict[str, float]:
    batch = minibatch(seed)
    return learner.update(batch.ranks[0], batch.num_global_tokens, batch.num_global_samples)


def published(learner: LearnerRank) -> np.ndarray:
    return learner.flat_weights(0)[1].view(np.float32).copy()


def base_of(learner: LearnerRank) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in learner.engine.model.named_parameters() if "lora_" not in n}


def plain_peft(model: Path, auto: Any = AutoModelForCausalLM, **options: Any) -> Any:
    """The reference: PEFT's own wrapper round the checkpoint, with the learner's draw of A."""
    head = {"modules_to_save": ["score"], "task_type": "SEQ_CLS"} if options else {}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=ALL, lora_dropout=0.0, **head)
    with torch.random.fork_rng(devices=[]):
        base = auto.from_pretrained(model, **options)
        torch.manual_seed(1)
        return get_peft_model(base, config)


def adapters(model: Any) -> dict[str, torch.Tensor]:
    named = ((name.removeprefix("base_model.model."), p) for name, p in model.named_parameters())
    return {name: p.detach() for name, p in named if "lora_" in name}


def whole(directory: Path, auto: Any = AutoModelForCausalLM) -> np.ndarray:
    """The parameters of an exported model, end to end."""
    model = auto.from_pretrained(directory)
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]).numpy()


# ---------------------------------------------------------------------------------------- updates


def test_a_policy_starts_as_its_base_and_trains_adapters_only(llama: Path) -> None:
    learner = LearnerRank(0, 1, **learner_arguments(llama))
    found = learner.setup(*learner.address())
    assert (found["parameters"], found["trained"]) == (whole(llama).size, NUM_TRAINED)
    plain = started(llama, lora=None)
    batch = minibatch(0)
    for ours, theirs in zip(
        learner.logprobs(batch.ranks[0]), plain.logprobs(batch.ranks[0]), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(published(learner), published(plain))
    optimizer = learner.engine._engine.optimizer
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == NUM_TRAINED
    plain.close()
    learner.close()


def test_updates_are_those_of_plain_peft_and_adamw(llama: Path) -> None:
    learner, reference = started(llama), plain_peft(llama)
    optimizer = torch.optim.AdamW([p for p in reference.parameters() if p.requires_grad], **ADAM)
    start = {name: p.clone() for name, p in adapters(reference).items()}
    assert all(torch.equal(p, start[name]) for name, p in adapters(learner.engine.model).items())
    for seed in range(3):
        metrics = update(learner, seed)
        samples = reference_samples(random_samples(9, seed))
        loss = update_policy(reference, optimizer, samples, temperature=TEMPERATURE)
        assert metrics["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-7)
    theirs = adapters(reference)
    for name, ours in adapters(learner.engine.model).items():
        moved = (theirs[name] - start[name]).norm()
        assert moved > 0
        assert (ours - theirs[name]).norm() <= 1e-3 * moved, name
    np.testing.assert_allclose(
        published(learner),
        torch.cat([p.detach().reshape(-1) for p in reference.merge_and_unload().parameters()]).numpy(),
        atol=1e-5,
    )
    learner.close()


def test_the_first_updates_of_a_bfloat16_adapter_reach_the_engines(llama: Path) -> None:
    """They are far smaller than the distance of two numbers of bfloat16. Rounded to the nearest,
    .08 of the adapter arrived after two updates.
    """
    learner = started(llama, dtype="bfloat16", optimizer=OptimizerSettings(lr=1e-5))
    for seed in (1, 2):
        update(learner, seed)
    sent = due = 0.0
    weights = dict(learner.engine.parameters(torch.bfloat16))
    for one in whole_parameters(learner.engine.model):
        if one.adapter is not None:
            a, b = (part.detach().float() for part in one.adapter)
            change = one.scale * b @ a
            sent += (change * (weights[one.name].float() - one.weight.float())).sum().item()
            due += change.square().sum().item()
    assert sent / due == pytest.approx(1.0, abs=0.15)
    learner.close()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_stage_makes_the_same_updates(tied: Path, stage: int, dtype: str) -> None:
    plain, staged = started(tied), started(tied, zero_stage=stage, dtype=dtype)
    for seed in range(2):
        expected, metrics = update(plain, seed), update(staged, seed)
    close = {"rel": 1e-5, "abs": 1e-6} if dtype == "float32" else {"rel": 0.05, "abs": 0.02}
    assert metrics["loss"] == pytest.approx(expected["loss"], **close)
    assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], **close)
    np.testing.assert_allclose(published(staged), published(plain), atol=1e-5 if dtype == "float32" else 0.1)
    staged.close()
    plain.close()


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True, "zero_stage": 3},
        {"gradient_checkpointing": True},
        {"offload_optimizer": True, "zero_stage": 2},
    ],
)
def test_recomputation_and_offload_change_nothing(llama: Path, options: dict[str, Any]) -> None:
    plain, saving = started(llama), started(llama, **options)
    for seed in range(2):
        expected, metrics = update(plain, seed), update(saving, seed)
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(published(saving), published(plain), atol=1e-5)
    saving.close()
    plain.close()


def test_the_base_is_the_same_bits_after_many_updates_and_syncs(llama: Path, tmp_path: Path) -> None:
    learner = started(llama)
    before = base_of(learner)
    first = published(learner)
    for step in range(40):
        update(learner, step % 5)
        last = published(learner)
    learner.export(tmp_path / "policy", llama)
    after = base_of(learner)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert np.abs(last - first).max() > 0.05
    learner.close()


def test_what_engines_get_is_what_the_learner_computes(tied: Path, tmp_path: Path) -> None:
    learner = started(tied)
    for seed in range(3):
        update(learner, seed)
    manifest, buffer, (probe_ids, probe_logprobs) = learner.flat_weights(7)
    assert manifest.digest == flat_digest(buffer)
    learner.export(tmp_path / "policy", tied)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert manifest.names == tuple(name for name, _ in merged.named_parameters())
    np.testing.assert_array_equal(buffer.view(np.float32), whole(tmp_path / "policy"))
    adapter = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tied), tmp_path / "policy" / "adapter"
    )
    with torch.no_grad():
        for model in (merged, adapter):
            expected, _ = sequence_logprobs(model, [probe_ids[:1]], [probe_ids[1:]], 1.0)
            assert probe_logprobs == pytest.approx(expected[0].tolist(), abs=2e-5)
        base, _ = sequence_logprobs(
            AutoModelForCausalLM.from_pretrained(tied), [probe_ids[:1]], [probe_ids[1:]], 1.0
        )
    assert np.abs(np.subtract(base[0].tolist(), probe_logprobs)).max() > 0.01
    # The adapter names its base, and is a small part of the merged model.
    config = json.loads((tmp_path / "policy/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tied)
    learner.close()


# ------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tied: Path, tmp_path: Path, stage: int
) -> None:
    learner = started(tied, zero_stage=stage)
    update(learner, 0)
    learner.save(tmp_path)
    uninterrupted = [update(learner, seed) for seed in (1, 2)]
    expected = published(learner)
    learner.close()
    fresh = started(tied, zero_stage=stage)
    fresh.load(tmp_path)
    for before, seed in zip(uninterrupted, (1, 2), strict=True):
        assert {**before, "seconds": 0} == {**update(fresh, seed), "seconds": 0}
    np.testing.assert_array_equal(published(fresh), expected)
    fresh.close()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_checkpoint_holds_no_frozen_weight(tied: Path, tmp_path: Path, stage: int) -> None:
    learner = started(tied, zero_stage=stage)
    update(learner, 0)
    learner.save(tmp_path)
    states = [torch.load(file, weights_only=False) for file in tmp_path.rglob("*model_states.pt")]
    assert len(states) == 1
    names = set(states[0]["module"])
    assert len(names) == 2 * 7 * 2 and all(".lora_" in name for name in names)
    # The adapters, at stage 2 their master weights, and two moments of each.
    files = [torch.load(file, weights_only=False) for file in (tmp_path / "state").glob("*.pt")]
    count = sum(tensor.numel() for tensor in tensors_in(files))
    assert 3 * NUM_TRAINED <= count <= 4 * NUM_TRAINED + 100
    learner.close()


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors_in(child)


def test_a_checkpoint_of_another_base_is_refused(llama: Path, tmp_path: Path) -> None:
    base = shutil.copytree(llama, tmp_path / "base")
    learner = started(base)
    update(learner, 0)
    learner.save(tmp_path / "saved")
    learner.close()
    save_llama(base, seed=5)  # other weights at the same path
    fresh = started(base)
    with pytest.raises(UserError, match="trained on other weights than those in .*resume with the model"):
        fresh.load(tmp_path / "saved")
    fresh.close()


# ----------------------------------------------------------------------------------------- critic


def critic_loss(model: Any, prompts: Sequence[Sequence[int]], rewards: Sequence[float]) -> torch.Tensor:
    logits = torch.stack([model(input_ids=torch.tensor([ids])).logits[0, 0] for ids in map(list, prompts)])
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(rewards))


def test_the_critics_updates_are_those_of_plain_peft_with_its_head(llama: Path, tmp_path: Path) -> None:
    critic = started_critic(llama)
    reference = plain_peft(llama, AutoModelForSequenceClassification, num_labels=1)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "score" in name:
                parameter.zero_()
    optimizer = torch.optim.AdamW([p for p in reference.parameters() if p.requires_grad], **ADAM)
    for seed in range(3):
        prompts, rewards = prompts_and_rewards(random_samples(11, seed))
        metrics = critic.update(TokenRows.of(prompts), np.array(rewards, np.float32), len(prompts))
        expected = descend(reference, optimizer, critic_loss(reference, prompts, rewards))
        assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    prompts, _ = prompts_and_rewards(random_samples(7, seed=9))
    values = critic.values(TokenRows.of(prompts))
    with torch.no_grad():
        expected = [reference(input_ids=torch.tensor([list(ids)])).logits[0, 0].item() for ids in prompts]
    assert values.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert np.abs(values).max() > 0.01

    critic.export(tmp_path / "critic", llama)
    critic.save(tmp_path / "saved")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic")
    base = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1)
    adapter = PeftModel.from_pretrained(base, tmp_path / "critic" / "adapter")
    with torch.no_grad():
        for model in (merged, adapter):
            found = [model(input_ids=torch.tensor([list(ids)])).logits[0, 0].item() for ids in prompts]
            assert found == pytest.approx(values.tolist(), rel=1e-3, abs=2e-5)
    critic.close()
    fresh = started_critic(llama)
    fresh.load(tmp_path / "saved")
    np.testing.assert_array_equal(fresh.values(TokenRows.of(prompts)), values)
    fresh.close()


# -------------------------------------------------------------------------------------- two ranks


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_make_the_updates_of_one_and_resume(
    ray_cluster: Any, hosts: Any, tied: Path, tmp_path: Path, stage: int
) -> None:
    one = started(tied)
    group = Group(ray_cluster, hosts[2], LearnerRank, learner_arguments(tied, zero_stage=stage))
    for seed in range(3):
        expected = update(one, seed)
        rows = group.update_policy(minibatch(seed, ranks=2))
        assert all({**row, "seconds": 0} == {**rows[0], "seconds": 0} for row in rows)
        assert rows[0]["loss"] == pytest.approx(expected["loss"], rel=1e-4, abs=1e-6)
        assert rows[0]["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    np.testing.assert_allclose(group.weights(), published(one), atol=1e-4)
    one.close()
    group.all("save", str(tmp_path / "state"))
    batch = minibatch(7, ranks=2)
    group.update_policy(batch)
    after = group.weights()
    group.all("load", str(tmp_path / "state"))
    group.update_policy(batch)
    # gloo adds in an order of its own choice
    np.testing.assert_allclose(group.weights(), after, atol=1e-5)
    group.all("export", str(tmp_path / "policy"), str(tied))
    np.testing.assert_array_equal(whole(tmp_path / "policy"), group.weights())
    adapter = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tied), tmp_path / "policy" / "adapter"
    ).merge_and_unload()
    merged = torch.cat([parameter.detach().reshape(-1) for parameter in adapter.parameters()]).numpy()
    np.testing.assert_allclose(merged, group.weights(), atol=1e-6)
    group.all("close")


def test_two_critic_ranks_agree_with_one(ray_cluster: Any, hosts: Any, llama: Path) -> None:
    one = started_critic(llama)
    group = Group(ray_cluster, hosts[2], CriticRank, critic_arguments(llama, zero_stage=2))
    for seed in range(2):
        prompts, rewards = prompts_and_rewards(random_samples(11, seed))
        expected = one.update(TokenRows.of(prompts), np.array(rewards, np.float32), len(prompts))
        assert group.update_critic(prompts, rewards)[0]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert math.isfinite(expected["loss"])
    one.close()
    group.all("close")


# -------------------------------------------------------------------------------------- whole runs


def test_an_engine_serves_the_merged_weights(engines: dict[str, Engine], tmp_path: Path) -> None:
    engine = engines["qwen"]
    engine.initial.save_pretrained(tmp_path)
    learner = started(tmp_path, max_tokens_per_microbatch=512)
    for seed in range(4):
        update(learner, seed)
    ray.get(engine.actor.repair.remote())
    sent = InThisProcess(learner).publish(60)
    base = publish(engine.initial, 59)
    assert np.abs(np.frombuffer(sent.handle, np.float32) - base.handle.view(np.float32)).max() > 0.01
    assert verify_receipt(sent, pull(engine.actor, sent), ProbeTolerance.for_dtype("float32")) < 5e-5

    small = ["--data.max_prompt_tokens=100", "--learner.max_tokens_per_microbatch=512"]
    config = load_config("quickstart", [f"--rollout.temperature={TEMPERATURE}", *small])
    gate = LogprobCheck(config, InThisProcess(learner))  # type: ignore[arg-type]  # all that it asks
    figures = asyncio.run(gate.check(first_batch(engine), None, version=60))
    # the learner adds B A x to W x, the engine multiplies with W + B A: rounding in float32
    assert figures["mismatch/first_batch_difference"] < 2e-5
    # The base under the same version is found.
    stale = replace(publish(engine.initial, 61), probe_ids=sent.probe_ids)
    pull(engine.actor, stale)
    with pytest.raises(WeightMismatch, match="sampled at policy version 61"):
        asyncio.run(gate.check(first_batch(engine), None, version=61))
    learner.close()


@pytest.mark.slow
@pytest.mark.timeout(1500)  # four commands, each with its own deadline
def test_a_run_learns_exports_resumes_and_replays(tmp_path: Path) -> None:
    """The quickstart with adapters for policy and critic. Its base solves .45 of the held-out
    prompts.
    """
    run = tmp_path / "run"
    adapters = ["--learner.lora.rank=16", "--critic.lora.rank=16", "--learner.optimizer.lr=3e-3"]
    small = ["--eval.every=8", "--checkpoint.every=7", "--checkpoint.keep=2", "--logging.progress=plain"]
    where = ["--run-dir", str(run), *small, *adapters, "--critic.optimizer.lr=5e-3"]
    done = sppo_ray("train", "quickstart", *where, "--loop.steps=8")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["final_accuracy"] > summary["initial_accuracy"] + 0.2
    assert (run / "export/policy/adapter/adapter_model.safetensors").is_file()
    assert (run / "export/critic/adapter/adapter_config.json").is_file()
    base = resolve_model("builtin:running-sum")
    policy = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), run / "export/policy/adapter"
    ).merge_and_unload()
    merged = torch.cat([parameter.detach().reshape(-1) for parameter in policy.parameters()]).numpy()
    np.testing.assert_allclose(merged, whole(run / "export/policy"), atol=1e-6)

    found = sppo_ray("replay", str(run), "--step", "8", "--json", "--exact")
    assert found.returncode == 0, found.stdout + found.stderr
    assert json.loads(found.stdout)["bit_for_bit"]
    other = sppo_ray("train", "quickstart", *where, "--loop.steps=9", "--resume", "--learner.lora.rank=8")
    assert other.returncode == 2 and "learner.lora.rank: 16 then, 8 now" in other.stderr
    more = sppo_ray("train", "quickstart", *where, "--loop.steps=9", "--resume")
    assert more.returncode == 0, more.stdout + more.stderr
