"""Converts the columns of a micro-batch to the tensors that the loss reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sppo_ray.types import MicroBatch


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The loss's input for B samples with N action tokens, besides the policy's outputs.

    The [N] tensors hold the action tokens, sample after sample.
    """

    old_logprobs: Tensor  # [N] float32, log pi_old
    rollout_logprobs: Tensor  # [N] float32, log-probs of the engine
    advantages: Tensor  # [N] float32
    weights: Tensor  # [B] float32, 1, or 0 for a filler row
    lengths: Tensor  # [B] int64, action tokens of each sample
    reference_logprobs: Tensor | None  # [N] float32; None without a KL penalty


def to_tensors(batch: MicroBatch, device: torch.device | str = "cpu") -> TokenBatch:
    """Copy the loss's input of a micro-batch to `device`.

    Raises:
        ValueError: log-probs or advantages do not have one entry per action token.
    """
    lengths = batch.action_lengths
    total = int(lengths.sum())
    reference = batch.reference_logprobs
    columns = {
        "log-probs": batch.old_logprobs,
        "the engine's log-probs": batch.rollout_logprobs,
        "advantages": batch.advantages,
        "reference log-probs": batch.advantages if reference is None else reference,
    }
    for what, column in columns.items():
        if len(column) != total:
            raise ValueError(f"{what} and responses differ in length: {len(column)} and {total}")

    def tensor(column: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(column, dtype=dtype, device=device)

    return TokenBatch(
        old_logprobs=tensor(batch.old_logprobs),
        rollout_logprobs=tensor(batch.rollout_logprobs),
        advantages=tensor(batch.advantages),
        weights=tensor(batch.weights),
        lengths=tensor(lengths, torch.int64),
        reference_logprobs=None if reference is None else tensor(reference),
    )
