"""ZeRO-3 loads a model without a rank that ever holds all of it. Two processes, gloo."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from actors.deepspeed import TrainingEngine, ZeroSharding, join_group, open_store, reach_store
from sppo_ray.config import LearnerSettings
from sppo_ray.models.policy import load_policy
from sppo_ray.models.value_head import load_value_model
from tests.training_data import save_llama, save_qwen

RANKS = 2
MIB = 2**20


def resident(name: str) -> int:
    """Return bytes from /proc: VmRSS now, VmHWM at most."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows[name].split()[0]) * 1024


def rank(number: int, path: Path, dtype: str, role: str, pipe: Connection, port: int) -> None:
    """Load and compare with a whole model, which is loaded afterwards."""
    torch.set_num_threads(1)
    store = reach_store("127.0.0.1", port)
    join_group(number, RANKS, device="cpu", store=store)
    settings = LearnerSettings(model=str(path), dtype=dtype, zero_stage=3)
    load: Any = load_policy if role == "policy" else load_value_model
    torch.manual_seed(7)
    expected_draw = torch.rand(1).item()
    torch.manual_seed(7)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = resident("VmRSS")
    module = load(path, dtype=dtype, sharding=ZeroSharding(settings))
    peak = resident("VmHWM") - before
    draws_nothing = torch.rand(1).item() == expected_draw
    held = sum(parameter.ds_tensor.nbytes for parameter in module.parameters())
    engine = TrainingEngine(module, settings, device="cpu", world_size=RANKS)
    loaded = {name: tensor.clone() for name, tensor in engine.parameters()}
    auto = AutoModelForCausalLM if role == "policy" else AutoModelForSequenceClassification
    changes = {} if role == "policy" else {"num_labels": 1}
    whole = auto.from_pretrained(path, dtype=getattr(torch, dtype), **changes)
    expected = dict(whole.named_parameters())
    equal = loaded.keys() == expected.keys() and all(
        torch.equal(tensor, torch.zeros_like(tensor) if name == "score.weight" else expected[name])
        for name, tensor in loaded.items()
    )
    buffers = dict(whole.named_buffers())
    same_buffers = all(torch.equal(buffer, buffers[name]) for name, buffer in engine.model.named_buffers())
    pipe.send(
        {
            "peak": peak,
            "held": held,
            "whole": sum(tensor.nbytes for tensor in expected.values()),
            "parameters": engine.num_parameters,
            "equal": equal,
            "buffers": same_buffers,
            "draws_nothing": draws_nothing,
        }
    )
    torch.distributed.barrier()


def load_on_ranks(path: Path, dtype: str = "float32", role: str = "policy") -> list[dict[str, Any]]:
    spawn = multiprocessing.get_context("spawn")
    store = open_store("127.0.0.1")
    pipes = [spawn.Pipe(duplex=False) for _ in range(RANKS)]
    processes = [
        spawn.Process(target=rank, args=(number, path, dtype, role, pipes[number][1], store.port))
        for number in range(RANKS)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()  # so that a process that dies ends the wait
    try:
        return [receiver.recv() for receiver, _ in pipes]
    finally:
        for process in processes:
            process.join(60)
            process.kill()


def check(found: list[dict[str, Any]]) -> None:
    for row in found:
        assert row["equal"] and row["buffers"] and row["draws_nothing"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_model_is_the_checkpoint_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    check(load_on_ranks(save_qwen(tmp_path), dtype))


@pytest.mark.slow
def test_a_critic_with_a_new_head_is_the_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    check(load_on_ranks(save_llama(tmp_path), role="critic"))


@pytest.mark.slow
def test_no_rank_holds_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """135M parameters, tied. The largest parameter is small beside the model, as in a real one."""
    # Freed memory goes back to the system at once. Otherwise malloc keeps up to 150 MiB of it
    # between the shares, and the peak would measure that.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    config = LlamaConfig(
        vocab_size=6144,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=37,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path, max_shard_size="200MB")
    found = load_on_ranks(tmp_path)
    check(found)
    for row in found:
        assert row["parameters"] == row["whole"] / 4 > 134e6
        assert row["held"] <= row["whole"] / RANKS + MIB
        # its share, the largest parameter (gathered, and the file's pages), what the libraries take
        assert row["peak"] < row["held"] + 96 * MIB < 0.7 * row["whole"], row
