"""The reference: the starting policy, frozen, that a KL penalty measures from. Forward only, so neither DeepSpeed nor a group.

One copy a learner rank, which reads that rank's micro-batches with the same padding. Its log-probs are those of
softmax(logits / temperature) at the rollout's temperature, as the learner's: the penalty is on the distribution that
responses are sampled from, and the two of an unchanged policy are equal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ray
import torch
import transformers

from actors.liveness import VITAL
from actors.logprobs import Rows, response_logprobs
from actors.memory import peak_bytes
from sppo_ray.config import ReferenceSettings
from sppo_ray.models.loading import Attention
from sppo_ray.models.policy import PolicyModel, load_policy
from sppo_ray.types import MicroBatch


class ReferenceRank:
    """The copy of learner rank `rank`, whose `attention` it shares. Order of calls: `setup`, then `logprobs` any number of
    times."""

    def __init__(
        self, rank: int, settings: ReferenceSettings, *, model_path: str, attention: Attention, temperature: float
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
        # The learner's kernel, for the same rounding; flash attention knows no float32, in which rounding hardly shows.
        attention = self.attention if self.settings.dtype == "bfloat16" else "auto"
        policy = load_policy(self.model_path, dtype=self.settings.dtype, attention=attention)
        self._policy = policy.eval().requires_grad_(False).to(self.device)
        self._policy.register_forward_pre_hook(self._count)
        return {"parameters": sum(p.numel() for p in self._policy.parameters()), "device": self.device}

    def logprobs(self, microbatches: Sequence[MicroBatch]) -> Rows:
        """The frozen weights' log-probs of the responses, `[micro-batch][sample][token]`."""
        if self._policy is None:
            raise RuntimeError("setup() comes first")
        return response_logprobs(self._policy, microbatches, temperature=self.temperature, device=self.device)

    def ping(self) -> dict[str, Any]:
        """A sign of life: "progress" grows with every micro-batch. Answered by a thread of its own, beside any verb."""
        return {"pid": os.getpid(), "progress": self._forwards}

    def _count(self, *_: Any) -> None:
        self._forwards += 1

    def memory(self) -> int:
        """Peak bytes (`actors.memory`)."""
        return peak_bytes(self.device)


ReferenceActor = ray.remote(concurrency_groups=VITAL)(ReferenceRank)
