"""Loading parameter by parameter, and errors of the kernels. One process, without DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
)

from sppo_ray.errors import UserError
from sppo_ray.models import loading
from sppo_ray.models.finite import require_finite_files
from sppo_ray.models.packed import PACKED, PACKED_SDPA
from sppo_ray.models.policy import load_policy
from sppo_ray.models.value_head import load_value_model
from tests.training_data import save_llama, save_qwen


class OneRank:
    """A sharding over one rank, which counts the parameters that it fills."""

    def __init__(self) -> None:
        self.filled = 0

    def constructing(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def filling(self, parameter: torch.Tensor) -> Iterator[bool]:
        self.filled += 1
        yield True


def same(ours: Any, theirs: Any) -> bool:
    """The same parameters and buffers, bit for bit."""
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("save", [save_llama, save_qwen])  # Qwen's head is tied
def test_parameter_by_parameter_is_the_checkpoint(save: Any, dtype: str, tmp_path: Path) -> None:
    directory, sharding = save(tmp_path), OneRank()
    model = load_policy(directory, dtype=dtype, sharding=sharding).model
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    assert same(model, whole) and not model.training
    assert dict(model.named_buffers()).keys() == dict(whole.named_buffers()).keys()
    for name, buffer in whole.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer)
    assert sharding.filled == len(list(whole.parameters()))  # a tied one once
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head is embedding) == whole.config.tie_word_embeddings


def test_a_new_head_of_a_critic_is_zero(tmp_path: Path) -> None:
    directory = save_llama(tmp_path)
    model = load_value_model(directory, dtype="float32", sharding=OneRank()).model
    whole = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1)
    torch.nn.init.zeros_(whole.score.weight)
    assert same(model, whole)


def test_names_that_are_not_the_models_are_left_to_transformers(tmp_path: Path) -> None:
    """A tied base model without its head: the names lack the prefix `model.`"""
    causal = AutoModelForCausalLM.from_pretrained(save_qwen(tmp_path / "causal"))
    causal.base_model.save_pretrained(tmp_path / "base")
    sharding = OneRank()
    model = load_policy(tmp_path / "base", dtype="float32", sharding=sharding).model
    assert sharding.filled == 0
    assert same(model, causal)


def test_a_sharded_model_is_checked_as_others_are(tmp_path: Path) -> None:
    config = Gemma2Config(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        attn_logit_softcapping=None,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does more to its logits than a linear head"):
        load_policy(tmp_path, dtype="float32", sharding=OneRank())


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    directory = save_llama(tmp_path)
    state = torch.get_rng_state()
    load_policy(directory, dtype="float32", sharding=OneRank())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("attention", "kernel"), [("auto", PACKED), ("flash_attention_2", PACKED), ("sdpa", PACKED_SDPA)]
)
def test_no_attention_needs_a_wheel(attention: Any, kernel: str, tmp_path: Path) -> None:
    """Both are functions of this package on torch's kernels; Transformers' own flash_attention_2
    needs the package flash-attn.
    """
    model = load_policy(save_llama(tmp_path), dtype="bfloat16", attention=attention).model
    assert model.config._attn_implementation == kernel


@pytest.mark.parametrize("sharding", [None, OneRank()])
def test_a_kernel_that_refuses_the_model_is_explained(
    sharding: OneRank | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> bool:
        raise RuntimeError("FlashAttention only supports head dimension at most 256")

    monkeypatch.setattr(loading, "packs_rows", refuse)
    directory = save_llama(tmp_path)
    with pytest.raises(UserError, match="does not load: .*at most 256"):
        load_policy(directory, dtype="bfloat16", sharding=sharding)


def test_on_a_gpu_the_remedy_is_sdpa() -> None:
    flash = loading.explained("m", attention="flash_attention_2", device="cuda")
    with pytest.raises(UserError, match="set attention to sdpa"), flash:
        raise RuntimeError("FlashAttention only supports head dimension at most 256")
    with pytest.raises(UserError) as caught, loading.explained("m", attention="sdpa", device="cuda"):
        raise RuntimeError("CUDA out of memory")
    assert "sdpa" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    directory = Path(save_llama(tmp_path))
    [file] = directory.glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in weights if "up_proj" in name)
    weights[name][0, 1] = value
    save_file(weights, file, metadata={"format": "pt"})
    said = rf"1 of {weights[name].numel()} values of {name} are not finite: the checkpoint is of a run that"
    with pytest.raises(UserError, match=said):
        load_policy(directory, dtype="float32")
    with pytest.raises(UserError, match=said):
        load_policy(directory, dtype="bfloat16", sharding=OneRank())
    with pytest.raises(UserError, match=said):
        require_finite_files(directory, largest=2**30)
    require_finite_files(directory, largest=1)  # left to the ranks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_kind_of_number_is_looked_at(dtype: torch.dtype, tmp_path: Path) -> None:
    largest = torch.finfo(dtype).max
    weights = {"a": torch.tensor([0.0, -1.0, largest], dtype=dtype), "n": torch.tensor([2**62])}
    save_file(weights, tmp_path / "model.safetensors")
    require_finite_files(tmp_path, largest=2**30)
    weights["a"][1] = -torch.inf
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="1 of 3 values of a are not finite"):
        require_finite_files(tmp_path, largest=2**30)
