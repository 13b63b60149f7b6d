"""Log-probs of the responses of micro-batches under a policy: the learner's present one, or the frozen reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sppo_ray.algorithms.tensor_ops import split_samples, to_tensors
from sppo_ray.types import MicroBatch

Rows = list[list[tuple[float, ...]]]
"""`[micro-batch][sample][token]`"""


@torch.no_grad()
def response_logprobs(policy: Callable[..., Any], microbatches: Sequence[MicroBatch], *, temperature: float, device: str) -> Rows:
    """One forward a micro-batch. `policy` is a `PolicyModel`, or the engine round one."""
    rows = []
    for microbatch in microbatches:
        batch = to_tensors(microbatch, device=device)
        logprobs, _ = policy(batch.token_ids, batch.loss_mask, batch.targets, temperature)
        rows.append(split_samples(logprobs, batch.lengths))
    return rows
