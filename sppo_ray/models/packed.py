"""Packs several rows into one forward pass without padding, with attention within each row only.

    rows     a0 a1 a2 b0 b1 c0 c1 c2 c3        token_ids     [1, T]
    position  0  1  2  0  1  0  1  2  3        position_ids  [1, T]
                                               Segments      start and end of each row

It works with every Transformers model that uses `AttentionInterface`: `load_model` sets
`attn_implementation="packed"`, and the segments are passed as a keyword argument of the model. On a
GPU in half precision the kernel is torch's variable-length flash attention. Elsewhere rows of
similar length are padded to a batch, only for the attention product. No mask is needed, because in
causal attention no token reads the padding on its right.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from sppo_ray.types import MicroBatch

PACKED = "packed"
PACKED_SDPA = "packed_sdpa"
"""Names of the attention implementations: best kernel of the device, and always SDPA."""
MAX_PADDING = 0.25
"""Maximum share of padding in a row of a bucket."""
_HALF = (torch.bfloat16, torch.float16)


class UnsupportedAttention(Exception):
    """The model needs an attention variant that packed rows do not support."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of similar length, padded to a batch."""

    rows: int
    width: int
    tokens: Tensor  # [rows * width] int64; padding repeats a token, and its result is dropped
    real: Tensor | None  # [number of real tokens] int64, positions in [rows * width]; None = all


@dataclass(frozen=True, slots=True)
class Segments:
    """Start and end of each of R rows in the T tokens of a forward pass."""

    bounds: Tensor  # [R + 1] int32, 0 and the ends of the rows
    longest: int
    buckets: tuple[Bucket, ...]  # for SDPA; the flash kernel reads `bounds`
    order: Tensor | None  # [T] int64, index of each token in the buckets' results; None = unchanged


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The inputs of one packed forward."""

    token_ids: Tensor  # [1, T] int64
    position_ids: Tensor  # [1, T] int64, from 0 in each row
    segments: Segments


def pack_rows(
    token_ids: np.ndarray, lengths: np.ndarray, *, device: torch.device | str = "cpu"
) -> PackedRows:
    """Build the inputs of a forward pass from concatenated rows.

    Args:
        token_ids: [T] integers.
        lengths: [R] integers >= 1, tokens of each row; their sum is T.

    Raises:
        ValueError: a row has no tokens, or the sum of lengths is not T.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if not len(lengths) or lengths.min() < 1 or lengths.sum() != len(token_ids):
        raise ValueError("the rows of a packed forward need at least one token each, and no other tokens")
    bounds = np.concatenate(([0], lengths.cumsum()))
    positions = np.arange(len(token_ids)) - np.repeat(bounds[:-1], lengths)
    buckets, order = _buckets(lengths, bounds, device)
    segments = Segments(
        torch.from_numpy(bounds.astype(np.int32)).to(device), int(lengths.max()), buckets, order
    )
    return PackedRows(
        torch.from_numpy(np.asarray(token_ids, dtype=np.int64))[None].to(device),
        torch.from_numpy(positions)[None].to(device),
        segments,
    )


def packed_hidden_states(base_model: Any, rows: PackedRows) -> Tensor:
    """Return the final hidden states of a Transformers model without its head, [T, D].

    `use_cache` is off, because with a cache Transformers treats all rows as one.
    """
    return base_model(
        input_ids=rows.token_ids,
        position_ids=rows.position_ids,
        segments=rows.segments,
        use_cache=False,
    ).last_hidden_state[0]


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """The policy's inputs for a micro-batch."""

    rows: PackedRows
    positions: Tensor  # [N] int64, positions whose next token is an action token
    targets: Tensor  # [N] int64, the action tokens


def policy_inputs(batch: MicroBatch, *, device: torch.device | str = "cpu") -> PolicyInputs:
    """Build the policy's inputs for a micro-batch.

    The logits at position t predict the token at t + 1. So the response r0, r1, ... to a prompt
    p0 .. pk is predicted at the positions of pk, r0, .... The last response token predicts nothing.
    Observations are read as context and predicted nowhere.
    """
    positions = batch.action_positions
    return PolicyInputs(
        pack_rows(batch.token_ids, batch.prompt_lengths + batch.response_lengths, device=device),
        torch.from_numpy(positions - 1).to(device),
        torch.from_numpy(batch.token_ids[positions].astype(np.int64)).to(device),
    )


def sequence_inputs(token_ids: np.ndarray, *, device: torch.device | str = "cpu") -> PolicyInputs:
    """Build the inputs of one sequence of T tokens whose N = T - 1 later tokens are targets."""
    return PolicyInputs(
        pack_rows(token_ids, np.array([len(token_ids)]), device=device),
        torch.arange(len(token_ids) - 1, device=device),
        torch.from_numpy(token_ids[1:].astype(np.int64)).to(device),
    )


def last_positions(lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the positions of the last `counts[i]` tokens of each row, [counts.sum()] int64."""
    ends, counts = np.cumsum(lengths, dtype=np.int64), np.asarray(counts, dtype=np.int64)
    first = np.repeat(ends - counts - (counts.cumsum() - counts), counts)
    return first + np.arange(counts.sum())


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    flash: bool = True,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each row, with the signature that Transformers requires.

    Args:
        query: [1, Hq, T, D]; key and value: [1, Hkv, T, D].
        sliding_window: number of tokens that a token attends to, including itself; None = all
            tokens up to itself.
        segments: None = each batch entry is one row (any batch size).
        flash: use the flash kernel if available.

    Returns:
        ([1, T, Hq, D], None).
    """
    if softcap is not None or s_aux is not None:
        raise UnsupportedAttention("soft-capped attention, or one with sinks")
    if segments is None:
        whole = _causal(query, key, value, scaling, sliding_window)
        return whole.transpose(1, 2).contiguous(), None
    if flash and query.is_cuda and query.dtype in _HALF:
        return _varlen(query, key, value, scaling, sliding_window, segments), None
    parts = [
        _of_bucket(query, key, value, scaling, sliding_window, bucket) for bucket in segments.buckets
    ]
    flat = parts[0] if len(parts) == 1 else torch.cat(parts)
    order = segments.order
    return (flat if order is None else flat.index_select(0, order))[None], None


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    sliding_window: int | None,
    segments: Segments,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    rows = [states[0].transpose(0, 1) for states in (query, key, value)]
    bounds, longest = segments.bounds, segments.longest
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    return varlen_attn(
        *rows, bounds, bounds, longest, longest, scale=scaling, window_size=window, enable_gqa=True
    )[None]


def _of_bucket(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    sliding_window: int | None,
    bucket: Bucket,
) -> Tensor:
    """Compute attention within the rows of a bucket, [real tokens, Hq, D], row after row."""
    whole = bucket.real is None and len(bucket.tokens) == query.shape[2]
    batch = [
        (states[0] if whole else states[0].index_select(1, bucket.tokens))
        .unflatten(1, (bucket.rows, bucket.width))
        .transpose(0, 1)
        for states in (query, key, value)
    ]
    flat = _causal(*batch, scaling, sliding_window).transpose(1, 2).flatten(0, 1)
    return flat if bucket.real is None else flat.index_select(0, bucket.real)


def _causal(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """[B, Hq, T, D] of [B, H, T, D] each."""
    grouped, width = query.shape[1] != key.shape[1], query.shape[2]
    mask = None
    if sliding_window is not None and width > sliding_window:
        time = torch.arange(width, device=query.device)
        distance = time[:, None] - time
        mask = (distance >= 0) & (distance < sliding_window)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )


def _buckets(
    lengths: np.ndarray, bounds: np.ndarray, device: torch.device | str
) -> tuple[tuple[Bucket, ...], Tensor | None]:
    """Sort rows into buckets, longest first; return them and each token's position in the
    results.
    """
    order = np.argsort(-lengths, kind="stable")
    buckets, positions, at = [], np.empty(int(bounds[-1]), dtype=np.int64), 0
    while len(order):
        width = int(lengths[order[0]])
        rows = order[lengths[order] >= width * (1 - MAX_PADDING)]
        order = order[len(rows) :]
        rows = np.sort(rows)
        time = np.arange(width)
        tokens = bounds[rows][:, None] + np.minimum(time, lengths[rows][:, None] - 1)
        real = time < lengths[rows][:, None]
        kept = tokens[real]
        positions[kept] = at + np.arange(len(kept))
        at += len(kept)
        padded = None if real.all() else torch.from_numpy(np.flatnonzero(real)).to(device)
        flat = torch.from_numpy(tokens.reshape(-1)).to(device)
        buckets.append(Bucket(len(rows), width, flat, padded))
    in_place = len(buckets) == 1
    return tuple(buckets), None if in_place else torch.from_numpy(positions).to(device)


@torch.no_grad()
def packs_rows(model: Any) -> bool:
    """Return whether a model with packed attention separates rows and, in float32, gives the
    results of its own attention. In half precision two kernels may differ by a third of the scale,
    so rows are compared with themselves alone.
    """
    rows = [np.arange(4), np.arange(2, 5)]
    inputs = pack_rows(np.concatenate(rows), np.array([len(row) for row in rows]), device=model.device)
    name = model.config._attn_implementation
    try:
        together = packed_hidden_states(model.base_model, inputs)
        if together.dtype != torch.float32:
            ones = [pack_rows(row, np.array([len(row)]), device=model.device) for row in rows]
            alone = torch.cat([packed_hidden_states(model.base_model, one) for one in ones])
            return _are_near(together, alone, 0.1)
        model.set_attn_implementation("eager")
        alone = [
            model.base_model(input_ids=torch.from_numpy(row)[None].to(model.device), use_cache=False)
            for row in rows
        ]
    except (UnsupportedAttention, TypeError):  # TypeError: the model takes no segments
        return False
    finally:
        model.set_attn_implementation(name)
    return _are_near(together, torch.cat([outputs.last_hidden_state[0] for outputs in alone]), 1e-4)


def _are_near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    scale = float(expected.float().abs().max()) or 1.0
    return bool((found - expected).float().abs().max() <= tolerance * scale)


def _no_mask(*_: Any, **__: Any) -> None:
    """Return no mask, because segments separate the rows."""


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(PACKED_SDPA, partial(packed_attention, flash=False))
for _name in (PACKED, PACKED_SDPA):
    AttentionMaskInterface.register(_name, _no_mask)
