"""The reference: the frozen starting policy of a KL penalty.

It only does forward passes, so it uses neither DeepSpeed nor a process group. There is one copy per
learner rank, which reads that rank's micro-batches. Log-probs are those of
softmax(logits / temperature) with the rollout's temperature, as in the learner. So the penalty
applies to the sampling distribution, and is 0 for an unchanged policy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
import transformers

from actors.liveness import VITAL
from actors.logprobs import response_logprobs
from actors.memory import peak_bytes
from sppo_ray.config import ReferenceSettings
from sppo_ray.models.loading import Attention
from sppo_ray.models.policy import PolicyModel, load_policy
from sppo_ray.types import MicroBatch


class ReferenceRank:
    """The copy for learner rank `rank`, with the learner's `attention`.

    Order of calls: `setup`, then `logprobs` any number of times.
    """

    def __init__(
        self,
        rank: int,
        settings: ReferenceSettings,
        *,
        model_path: str,
        attention: Attention,
        temperature: float,
    ) -> None:
        self.rank = rank
        self.settings = settings
        self.model_path = model_path
        self.attention = attention
        self.temperature = temperature
        self.device = "cuda" if settings.gpus_per_rank > 0 else "cpu"
        self._policy: PolicyModel | None = None
        self._forwards = 0

    def setup(self) -> dict[str, Any]:
        """Load the policy. Returns {"parameters": total, "device": "cpu" | "cuda"}.

        Raises:
            UserError: the model does not load.
        """
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(max(1, int(self.settings.cpus_per_rank)))
        # The learner's kernel, for equal rounding.
        policy = load_policy(
            self.model_path, dtype=self.settings.dtype, attention=self.attention, device=self.device
        )
        self._policy = policy.eval().requires_grad_(False)
        self._policy.register_forward_pre_hook(self._count)
        return {"parameters": sum(p.numel() for p in self._policy.parameters()), "device": self.device}

    def logprobs(self, microbatches: Sequence[MicroBatch]) -> list[np.ndarray]:
        """Return the log-probs of each micro-batch, [response tokens] float32."""
        if self._policy is None:
            raise RuntimeError("setup() comes first")
        return response_logprobs(self._policy, microbatches, temperature=self.temperature, device=self.device)

    def ping(self) -> dict[str, Any]:
        """Return {"pid", "progress"}; "progress" counts micro-batches. A separate thread answers it
        during other calls.
        """
        return {"pid": os.getpid(), "progress": self._forwards}

    def _count(self, *_: Any) -> None:
        self._forwards += 1

    def memory(self) -> int:
        """Return the peak bytes of this process (`actors.memory`)."""
        return peak_bytes(self.device)


ReferenceActor = ray.remote(concurrency_groups=VITAL)(ReferenceRank)
