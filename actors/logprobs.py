"""Computes log-probs of responses under the learner's policy or the frozen reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from sppo_ray.models.packed import policy_inputs
from sppo_ray.types import MicroBatch


@torch.no_grad()
def response_logprobs(
    policy: Callable[..., Any], microbatches: Sequence[MicroBatch], *, temperature: float, device: str
) -> list[np.ndarray]:
    """Return the log-probs of each micro-batch, [response tokens] float32, one forward pass each.

    `policy` is a `PolicyModel`, or a `TrainingEngine` of one.
    """
    found = []
    for microbatch in microbatches:
        logprobs, _ = policy(policy_inputs(microbatch, device=device), temperature)
        found.append(logprobs.cpu().numpy())
    return found
