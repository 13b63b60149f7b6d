"""From nested lists to right-padded tensors and back: the only place where a response token's index is worked out.

Padding is on the right, so a causal model never lets a real token attend to it: no attention mask is needed and the
log-probs do not depend on the padding.

    tokens   p0 p1 p2 r0 r1 r2  .      logits at position t predict token t + 1, so the response r0..r2 is
    t         0  1  2  3  4  5  6      predicted at t = P - 1 .. P + R - 2 = 2 .. 4; the last response
    mask      .  .  x  x  x  .  .      token predicts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sppo_ray.types import MicroBatch


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """A MicroBatch as tensors: B samples padded to T tokens, N response tokens in all.

    The flat [N] tensors are in the order of `loss_mask`'s true entries: sample after sample, each in time order.
    """

    token_ids: Tensor  # [B, T] int64, prompt then response then padding
    loss_mask: Tensor  # [B, T] bool, true at t where token t + 1 is a response token
    targets: Tensor  # [N] int64, the response tokens
    old_logprobs: Tensor  # [N] float32
    rollout_logprobs: Tensor  # [N] float32
    advantages: Tensor  # [N] float32
    weights: Tensor  # [B] float32, 0 for a filler
    lengths: Tensor  # [B] int64, response tokens of each sample
    reference_logprobs: Tensor | None  # [N] float32; None without a KL penalty


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """[B, longest row] int64."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows], dtype=torch.int64)


def to_tensors(batch: MicroBatch, pad_id: int = 0, device: torch.device | str = "cpu") -> TokenBatch:
    """Pad and flatten one micro-batch. `pad_id` is any id of the vocabulary; no result depends on it.

    Raises:
        ValueError: a sample's log-probs or advantages and its response differ in length, or prompt or response is empty.
    """
    prompts = torch.tensor([len(ids) for ids in batch.prompt_ids])
    lengths = torch.tensor([len(ids) for ids in batch.response_ids])
    if int(prompts.min()) < 1 or int(lengths.min()) < 1:
        raise ValueError("a training sample needs at least one prompt token and one response token")
    token_ids = pad_right([(*p, *r) for p, r in zip(batch.prompt_ids, batch.response_ids, strict=True)], pad_id)
    time = torch.arange(token_ids.shape[1])
    first = (prompts - 1)[:, None]
    reference = batch.reference_logprobs
    return TokenBatch(
        token_ids=token_ids.to(device),
        loss_mask=((time >= first) & (time < first + lengths[:, None])).to(device),
        targets=torch.tensor([t for ids in batch.response_ids for t in ids], dtype=torch.int64).to(device),
        old_logprobs=_flat(batch.old_logprobs, lengths, "log-probs").to(device),
        rollout_logprobs=_flat(batch.rollout_logprobs, lengths, "log-probs").to(device),
        advantages=_flat(batch.advantages, lengths, "advantages").to(device),
        weights=torch.tensor(batch.weights, dtype=torch.float32).to(device),
        lengths=lengths.to(device),
        reference_logprobs=_flat(reference, lengths, "reference log-probs").to(device) if reference else None,
    )


def split_samples(flat: Tensor, lengths: Tensor) -> list[tuple[float, ...]]:
    """[N] -> one tuple of floats a sample; undoes the flattening of `to_tensors`."""
    return [tuple(part.tolist()) for part in flat.split(lengths.tolist())]


def _flat(rows: Sequence[Sequence[float]], lengths: Tensor, what: str) -> Tensor:
    if [len(row) for row in rows] != lengths.tolist():
        raise ValueError(f"{what} and response differ in length")
    return torch.tensor([value for row in rows for value in row], dtype=torch.float32)
