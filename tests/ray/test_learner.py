"""One learner rank on real DeepSpeed, in this process. Two ranks, in Ray actors: test_parity.py."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.deepspeed import learning_rate
from actors.learner import LearnerRank
from sppo_ray.config import LearnerSettings, OptimizerSettings, SPPOSettings
from sppo_ray.data.packing import pack
from sppo_ray.errors import UserError
from sppo_ray.models.policy import load_policy
from sppo_ray.models.rounding import rounded
from sppo_ray.rollout.weight_digest import flat_digest
from sppo_ray.types import Minibatch
from tests.reference_sppo import sequence_logprobs
from tests.training_data import random_samples, save_llama

# A larger eps than usual: Adam divides by the gradient's own size, which turns the rounding of a
# gradient near zero into a step of the full learning rate.
OPTIMIZER = OptimizerSettings(lr=1e-3, eps=1e-5, weight_decay=0.01, grad_clip=0.5)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def arguments(model: Path, *, algorithm: SPPOSettings | None = None, **settings: Any) -> dict[str, Any]:
    settings = {"optimizer": OPTIMIZER, "max_tokens_per_microbatch": 128} | settings
    return {
        "settings": LearnerSettings(model=str(model), **settings),
        "model_path": str(model),
        "algorithm": algorithm or SPPOSettings(),
        "temperature": 0.8,
        "max_response_tokens": 20,
        "total_updates": 10,
        "seed": 1,
        "sync_dtype": "float32",
    }


def started(model: Path, **options: Any) -> LearnerRank:
    learner = LearnerRank(0, 1, **arguments(model, **options))
    learner.setup(*learner.address())
    return learner


@pytest.fixture
def learner(llama: Path) -> Iterator[LearnerRank]:
    rank = started(llama)
    yield rank
    rank.close()


def minibatch(ranks: int = 1, seed: int = 0, count: int = 9, bound: int = 128) -> Minibatch:
    return pack(random_samples(count, seed), ranks, bound)


def update(learner: LearnerRank, batch: Minibatch) -> dict[str, float]:
    return learner.update(batch.ranks[0], batch.num_global_tokens, batch.num_global_samples)


def weights(learner: LearnerRank) -> np.ndarray:
    return learner.flat_weights(0)[1].view(np.float32).copy()


def test_metrics_of_an_update(learner: LearnerRank) -> None:
    metrics = update(learner, minibatch())
    assert metrics["lr"] == 1e-3
    assert metrics["skipped"] == 0.0
    assert (
        metrics["ratio_max"] > 1.2
        and 0.0 < metrics["clip_fraction_high"] < 1.0
        and 0.0 < metrics["clip_fraction_low"] < 1.0
    )
    assert 0.0 < metrics["entropy"] < math.log(45)
    assert 0.0 < metrics["logprob_difference_mean"] < metrics["logprob_difference_max"]
    assert all(math.isfinite(value) for value in metrics.values())


def test_micro_batches_change_neither_loss_nor_weights(llama: Path) -> None:
    results = []
    for bound in (40, 1024):
        learner = started(llama, max_tokens_per_microbatch=bound)
        batch = minibatch(bound=bound)
        results.append((len(batch.ranks[0]), update(learner, batch), weights(learner)))
        learner.close()
    (many, first, first_weights), (one, second, second_weights) = results
    assert many > 3 and one == 1
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-5)
    np.testing.assert_allclose(first_weights, second_weights, atol=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_stage_makes_the_same_update(llama: Path, stage: int, dtype: str) -> None:
    plain, staged = started(llama), started(llama, zero_stage=stage, dtype=dtype)
    for seed in range(2):
        expected, metrics = (update(rank, minibatch(seed=seed)) for rank in (plain, staged))
    close = {"rel": 1e-5, "abs": 1e-6} if dtype == "float32" else {"rel": 0.05, "abs": 0.02}
    assert metrics["loss"] == pytest.approx(expected["loss"], **close)
    assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], **close)
    np.testing.assert_allclose(weights(staged), weights(plain), atol=2e-6 if dtype == "float32" else 2e-2)
    staged.close()


@pytest.mark.parametrize("stage", [0, 3])
def test_recomputing_activations_and_logits_changes_nothing(
    llama: Path, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = started(llama)
    # 45 logits a position: chunks of 4 response tokens
    monkeypatch.setattr("actors.learner.load_policy", partial(load_policy, max_logits=200))
    saving = started(llama, zero_stage=stage, gradient_checkpointing=True)
    for seed in range(2):
        expected, metrics = (update(rank, minibatch(seed=seed)) for rank in (plain, saving))
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(weights(saving), weights(plain), atol=2e-6)


def test_an_offloaded_optimizer_makes_the_same_update(llama: Path) -> None:
    plain, offloaded = started(llama), started(llama, zero_stage=2, offload_optimizer=True)
    for seed in range(2):
        expected, metrics = (update(rank, minibatch(seed=seed)) for rank in (plain, offloaded))
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(weights(offloaded), weights(plain), atol=2e-6)
    with pytest.raises(ValueError, match="offload_optimizer needs a partitioned optimizer"):
        LearnerSettings(model=str(llama), offload_optimizer=True)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(llama: Path, stage: int) -> None:
    learner = started(llama, zero_stage=stage)
    update(learner, minibatch())
    before = weights(learner)
    good = minibatch(seed=1)
    first = good.ranks[0][0]
    poisoned = replace(first, advantages=np.full_like(first.advantages, np.nan))
    metrics = update(learner, replace(good, ranks=((poisoned, *good.ranks[0][1:]),)))
    assert metrics["skipped"] == metrics["skipped_total"] == 1.0
    assert math.isnan(metrics["loss"]) and not math.isfinite(metrics["grad_norm"])
    np.testing.assert_array_equal(weights(learner), before)
    again = update(learner, good)
    assert again["skipped"] == 0.0 and again["skipped_total"] == 1.0
    assert not np.array_equal(weights(learner), before)
    learner.close()


def test_recomputed_log_probs_make_every_ratio_one(llama: Path) -> None:
    learner = started(llama, algorithm=SPPOSettings(old_logprobs="learner", importance_cap=1.0))
    batch = minibatch()
    rows = learner.logprobs(batch.ranks[0])
    shard = tuple(
        replace(micro, old_logprobs=new) for micro, new in zip(batch.ranks[0], rows, strict=True)
    )
    metrics = update(learner, replace(batch, ranks=(shard,)))
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["clip_fraction_low"] == metrics["clip_fraction_high"] == 0.0
    engine = np.concatenate([micro.rollout_logprobs for micro in batch.ranks[0]])
    own = np.concatenate(rows)
    assert metrics["logprob_difference_mean"] == pytest.approx(
        np.abs(np.subtract(own, engine)).mean(), rel=1e-4
    )
    # the cap is 1: a token weighs min(pi_learner / pi_engine, 1)
    assert metrics["importance_mean"] == pytest.approx(
        np.minimum(np.exp(np.subtract(own, engine)), 1.0).mean(), rel=1e-4
    )
    learner.close()


def test_the_published_weights_are_the_models(learner: LearnerRank, tmp_path: Path, llama: Path) -> None:
    update(learner, minibatch())
    manifest, buffer, (probe_ids, probe_logprobs) = learner.flat_weights(7)
    assert (manifest.version, manifest.num_bytes, manifest.digest) == (7, buffer.nbytes, flat_digest(buffer))
    learner.export(tmp_path / "policy", llama)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    parameters = dict(plain.named_parameters())
    assert set(manifest.names) == set(parameters)
    for name, shape, offset in zip(manifest.names, manifest.shapes, manifest.offsets, strict=True):
        part = buffer[offset : offset + 4 * math.prod(shape)].view(np.float32).reshape(shape)
        np.testing.assert_array_equal(part, parameters[name].detach().numpy())
    with torch.no_grad():
        expected, _ = sequence_logprobs(plain, [probe_ids[:1]], [probe_ids[1:]], 1.0)
    assert probe_logprobs == pytest.approx(expected[0].tolist(), abs=1e-5)
    assert learner.flat_weights(8)[2] == (probe_ids, probe_logprobs)


def test_the_port_of_a_group_is_open_before_it_is_returned(llama: Path) -> None:
    """A port that was only found free may be another process's by the time that the ranks meet."""
    learner = LearnerRank(0, 1, **arguments(llama))
    _, port = learner.address()
    with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
        other.bind(("", port))


def test_sync_dtype_halves_the_buffer(llama: Path) -> None:
    learner = LearnerRank(0, 1, **arguments(llama) | {"sync_dtype": "bfloat16"})
    learner.setup(*learner.address())
    manifest, buffer, _ = learner.flat_weights(1)
    assert manifest.dtype == "bfloat16" and buffer.nbytes == 2 * sum(
        math.prod(shape) for shape in manifest.shapes
    )
    sent = torch.from_numpy(buffer.copy()).view(torch.bfloat16)
    due = [rounded(weight, torch.bfloat16, name).reshape(-1) for name, weight in learner.engine.parameters()]
    assert torch.equal(sent, torch.cat(due))
    learner.close()


def test_an_export_is_a_plain_checkpoint_and_replaces_an_older_one(
    learner: LearnerRank, tmp_path: Path, llama: Path
) -> None:
    target = tmp_path / "policy"
    target.mkdir()
    (target / "stale").touch()
    learner.export(target, llama)
    written = sorted(path.name for path in target.iterdir())
    model_files = ["config.json", "generation_config.json", "model.safetensors"]
    assert written == sorted([*model_files, "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"])
    assert json.loads((target / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert AutoTokenizer.from_pretrained(target).convert_ids_to_tokens(4) == "0"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    llama: Path, tmp_path: Path, stage: int
) -> None:
    schedule = OPTIMIZER.model_copy(update={"schedule": "linear"})
    learner = started(llama, zero_stage=stage, optimizer=schedule)
    update(learner, minibatch(seed=0))
    learner.save(tmp_path)
    uninterrupted = [update(learner, minibatch(seed=seed)) for seed in (1, 2)]
    expected = weights(learner)
    learner.close()

    fresh = started(llama, zero_stage=stage, optimizer=schedule)
    fresh.load(tmp_path)
    resumed = [update(fresh, minibatch(seed=seed)) for seed in (1, 2)]
    for before, after in zip(uninterrupted, resumed, strict=True):
        assert {**before, "seconds": 0} == {**after, "seconds": 0}
    np.testing.assert_array_equal(weights(fresh), expected)
    fresh.close()


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.victim, "owned")


def test_a_checkpoint_that_holds_code_is_refused_unread(llama: Path, tmp_path: Path) -> None:
    learner = started(llama, zero_stage=2)
    learner.save(tmp_path / "saved")
    files = sorted((tmp_path / "saved").rglob("*.pt"))
    assert len(files) == 3  # weights, optimizer, random state
    for file in files:
        original = file.read_bytes()
        torch.save({**torch.load(file, weights_only=False), "more": Payload(tmp_path / "victim")}, file)
        with pytest.raises(UserError, match=r"\.pt: holds something other than data.*could run code"):
            learner.load(tmp_path / "saved")
        assert not (tmp_path / "victim").exists()
        file.write_bytes(original)
    learner.load(tmp_path / "saved")
    learner.close()


def test_a_checkpoint_that_is_not_there_is_named(learner: LearnerRank, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no state of rank 0"):
        learner.load(tmp_path)


def test_learning_rate_schedule() -> None:
    linear = OptimizerSettings(lr=1.0, schedule="linear", final_lr_fraction=0.1, lr_warmup_steps=2)
    # two warm-up updates (1/2, 2/2), then from 1 at update 2 to 0.1 at update 5
    assert [learning_rate(linear, update, 6) for update in range(7)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.7, 0.4, 0.1, 0.1]
    )
    assert [learning_rate(OptimizerSettings(lr=2.0), update, 3) for update in range(3)] == [2.0, 2.0, 2.0]
