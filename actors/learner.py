"""The policy's trainer: one rank of a DeepSpeed group, and the source of every version of the weights.

update:        micro-batches --> log-probs --> clipped loss, summed over micro-batches and ranks --> one optimizer step
flat_weights:  all parameters in one buffer, with the digest and the probe by which an engine proves that it has them
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from actors.base import TrainingRank, copy_generation_config
from actors.liveness import VITAL
from actors.logprobs import Rows, response_logprobs
from sppo_ray.algorithms.policy_loss import LossScale, training_loss
from sppo_ray.algorithms.tensor_ops import to_tensors
from sppo_ray.config import Algorithm, LearnerSettings
from sppo_ray.models.loading import DTYPES, read_config
from sppo_ray.models.policy import PolicyModel, load_policy
from sppo_ray.trainer.interfaces import WeightManifest
from sppo_ray.trainer.weight_digest import flat_digest
from sppo_ray.types import MicroBatch

PROBE_TOKENS = 32
Probe = tuple[tuple[int, ...], tuple[float, ...]]  # token ids; log-probs of all but the first, at temperature 1


class LearnerRank(TrainingRank):
    """See `TrainingRank` for the order of calls. `temperature` is the rollout's: ratios compare what was sampled from."""

    settings: LearnerSettings

    def __init__(
        self,
        rank: int,
        world_size: int,
        settings: LearnerSettings,
        *,
        model_path: str,
        algorithm: Algorithm,
        temperature: float,
        max_response_tokens: int,
        total_updates: int,
        seed: int,
        sync_dtype: str,
    ) -> None:
        super().__init__(rank, world_size, settings, model_path=model_path, total_updates=total_updates, seed=seed)
        self.algorithm = algorithm
        self.temperature = temperature
        self.max_response_tokens = max_response_tokens
        self.sync_dtype = sync_dtype

    def update(self, microbatches: Sequence[MicroBatch], num_global_tokens: int, num_global_samples: int) -> dict[str, float]:
        """One optimizer step on this rank's share of a minibatch. A collective; every rank returns the same.

        Metrics are those of `training_loss` and the loss, as means over the global minibatch's response tokens (`_max`: the
        largest); then grad_norm (before clipping), lr, skipped (1 when loss or gradient was not finite and nothing was
        applied), skipped_total, seconds.
        """
        started = time.perf_counter()
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        maxima: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        scale = LossScale(num_global_tokens, num_global_samples, self.max_response_tokens)
        for microbatch in microbatches:
            batch = to_tensors(microbatch, device=self.device)
            logprobs, entropies = self.engine(batch.token_ids, batch.loss_mask, batch.targets, self.temperature)
            part = training_loss(logprobs, entropies, batch, self.algorithm, scale)
            self.engine.backward(part.loss)
            for name, value in (part.sums | {"loss": part.loss.detach()}).items():
                sums[name] += value
            for name, value in part.maxima.items():
                maxima[name] = torch.maximum(maxima[name], value)
        return self._apply_gradient(sums, maxima) | {"seconds": time.perf_counter() - started}

    def logprobs(self, microbatches: Sequence[MicroBatch]) -> Rows:
        """The present weights' log-probs of the responses, `[micro-batch][sample][token]`. A collective under ZeRO-3."""
        return response_logprobs(self.engine, microbatches, temperature=self.temperature, device=self.device)

    def flat_weights(self, version: int) -> tuple[WeightManifest | None, np.ndarray | None, Probe | None]:
        """All parameters, cast to `sync_dtype`, one after another in a uint8 buffer. A collective.

        Rank 0 returns the three parts, which Ray is to store as three objects; the others return three times None.
        """
        probe = self._probe()
        dtype = DTYPES[self.sync_dtype]
        buffer = torch.empty(self.engine.num_parameters if self.rank == 0 else 0, dtype=dtype)
        names, shapes, offsets, end = [], [], [], 0
        for name, parameter in self.engine.parameters():
            if self.rank == 0:
                names.append(name)
                shapes.append(tuple(parameter.shape))
                offsets.append(end * dtype.itemsize)
                buffer[end : end + parameter.numel()].copy_(parameter.reshape(-1))
                end += parameter.numel()
        if self.rank != 0:
            return None, None, None
        flat = buffer.view(torch.uint8).numpy()
        manifest = WeightManifest(
            version, tuple(names), tuple(shapes), tuple(offsets), self.sync_dtype, num_bytes=flat.nbytes, digest=flat_digest(flat)
        )
        return manifest, flat, probe

    @torch.no_grad()
    def _probe(self) -> Probe:
        """A fixed random token sequence and the log-probs that an engine with these weights must give it."""
        # Embedding tables are often padded beyond the tokenizer's last id, and an engine refuses an id from there.
        highest = max(2, int(0.9 * self.engine.model.config.get_text_config().vocab_size))
        generator = np.random.default_rng(0)
        token_ids = torch.from_numpy(generator.integers(0, highest, size=(1, PROBE_TOKENS))).to(self.device)
        wanted = torch.ones_like(token_ids, dtype=torch.bool)
        wanted[:, -1] = False
        logprobs, _ = self.engine(token_ids, wanted, token_ids[0, 1:], 1.0)
        return tuple(token_ids[0].tolist()), tuple(logprobs.tolist())

    def _load_model(self) -> PolicyModel:
        settings = self.settings
        return load_policy(
            self.model_path,
            dtype=settings.dtype,
            attention=settings.attention,
            gradient_checkpointing=settings.gradient_checkpointing,
            entropy_gradient=self.algorithm.entropy_coefficient > 0,
        )

    def _write_config(self, directory: Path, tokenizer: Any) -> None:
        config = read_config(self.model_path)
        config.dtype = self.settings.dtype
        config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        copy_generation_config(self.model_path, directory)


LearnerActor = ray.remote(concurrency_groups=VITAL)(LearnerRank)
