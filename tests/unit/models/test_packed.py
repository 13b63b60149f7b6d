"""Packed rows against separate forward passes of plain Transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from sppo_ray.models.packed import PACKED, last_positions, pack_rows

SIZES = {
    "vocab_size": 45,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "gemma3": Gemma3TextConfig(**SIZES | {"num_hidden_layers": 7}, head_dim=16, sliding_window=5),
    "gpt2": GPT2Config(
        vocab_size=45, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ),
}


def pair(config: PretrainedConfig) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same weights with packed attention and with Transformers' own."""
    torch.manual_seed(0)
    packed = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    plain.load_state_dict(packed.state_dict())
    return packed, plain


def packed_states(model: torch.nn.Module, rows: list[np.ndarray]) -> torch.Tensor:
    inputs = pack_rows(np.concatenate(rows), np.array([len(row) for row in rows]))
    return model.base_model(
        input_ids=inputs.token_ids,
        position_ids=inputs.position_ids,
        segments=inputs.segments,
        use_cache=False,
    ).last_hidden_state[0]


def separate_states(model: torch.nn.Module, rows: list[np.ndarray]) -> torch.Tensor:
    states = [
        model.base_model(input_ids=torch.from_numpy(row)[None], use_cache=False).last_hidden_state[0]
        for row in rows
    ]
    return torch.cat(states)


def gradients(model: torch.nn.Module, states: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    weights = torch.arange(states.numel()).reshape(states.shape).float().cos()
    (states * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.base_model.named_parameters() if p.grad is not None}


def rows_of(lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(len(lengths))
    return [rng.integers(0, 45, length) for length in lengths]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_are_separate_forwards(family: str, checkpointing: bool) -> None:
    packed, plain = pair(FAMILIES[family])
    if checkpointing:
        packed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        packed.train()
    rows = rows_of([9, 3, 9, 14, 1, 7, 12, 8])
    ours, theirs = packed_states(packed, rows), separate_states(plain, rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    mine, wanted = gradients(packed, ours), gradients(plain, theirs)
    assert mine.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(mine[name], gradient, rtol=2e-5, atol=2e-5 * float(gradient.abs().max()))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_any_lengths(lengths: list[int]) -> None:
    packed, plain = pair(FAMILIES["llama"])
    rows = rows_of(lengths)
    with torch.no_grad():
        torch.testing.assert_close(
            packed_states(packed, rows), separate_states(plain, rows), rtol=1e-5, atol=1e-5
        )


def test_a_row_does_not_depend_on_other_rows() -> None:
    packed, _ = pair(FAMILIES["gemma3"])
    rows = rows_of([6, 11, 5])
    other = [rows[0], (rows[1] + 1) % 45, rows[2][::-1].copy()]
    with torch.no_grad():
        assert torch.equal(packed_states(packed, rows)[:6], packed_states(packed, other)[:6])


def test_a_model_without_segments_is_a_plain_causal_one() -> None:
    packed, plain = pair(FAMILIES["qwen3"])
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        ours, theirs = (model(input_ids=ids, use_cache=False).logits for model in (packed, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_every_device_gets_the_buckets() -> None:
    """SDPA on a GPU (float32, or `attention: sdpa`) reads them as a CPU does: places and order."""
    lengths = np.array([3, 9, 1])
    here, there = (pack_rows(np.arange(13), lengths, device=device) for device in ("cpu", "meta"))
    assert [bucket.width for bucket in there.segments.buckets] == [9, 3, 1]
    assert there.segments.order is not None and there.segments.order.device.type == "meta"
    assert here.segments.order.tolist() == [9, 10, 11, *range(9), 12]


def test_positions_and_bounds() -> None:
    rows = pack_rows(np.arange(6), np.array([3, 1, 2]))
    assert rows.token_ids.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert rows.segments.bounds.tolist() == [0, 3, 4, 6] and rows.segments.longest == 3
    # the last 2 of row 0, the last 1 of row 1, the last 2 of row 2
    assert last_positions(np.array([3, 1, 2]), np.array([2, 1, 2])).tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("lengths", [[], [2, 0, 4], [2, 3]])
def test_rows_without_tokens_and_tokens_without_rows_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one token each"):
        pack_rows(np.arange(6), np.array(lengths, dtype=np.int64))
