"""The learner: updates the policy and publishes its weights. One rank of a DeepSpeed group.

update:        micro-batches --> log-probs --> clipped loss, summed over micro-batches and ranks
    --> one optimizer step
flat_weights:  all parameters in one buffer, with the digest and the probe that verify an engine
announce, send_weights:  the same in chunks, broadcast to a group of engines (`weights/sender.py`)
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from actors.base import TrainingRank, copy_generation_config
from actors.liveness import VITAL
from actors.logprobs import response_logprobs
from actors.offload import with_resident
from actors.weights.sender import ChunkSender
from sppo_ray.algorithms.policy_loss import LossScale, effective_sample_size, training_loss
from sppo_ray.algorithms.tensor_ops import to_tensors
from sppo_ray.config import Algorithm, LearnerSettings
from sppo_ray.models.loading import DTYPES, read_config
from sppo_ray.models.packed import policy_inputs, sequence_inputs
from sppo_ray.models.policy import PolicyModel, load_policy
from sppo_ray.protocols import Holds, WeightManifest
from sppo_ray.rollout.weight_digest import flat_digest
from sppo_ray.types import MicroBatch

PROBE_TOKENS = 16
# token ids; log-probs of all but the first, at temperature 1
Probe = tuple[tuple[int, ...], tuple[float, ...]]


class LearnerRank(TrainingRank):
    """One rank of the learner. See `TrainingRank` for the order of calls.

    `temperature` is the rollout's, so ratios compare the distributions of sampling.
    """

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
        super().__init__(
            rank, world_size, settings, model_path=model_path, total_updates=total_updates, seed=seed
        )
        self.algorithm = algorithm
        self.temperature = temperature
        self.max_response_tokens = max_response_tokens
        self.sync_dtype = sync_dtype
        # Kept between versions: touching new memory takes longer than copying the weights.
        self._sync_buffer: Tensor | None = None
        self._sender: ChunkSender | None = None
        # version of the last `announce`, and `num_updates` then
        self._announced: tuple[int, int] | None = None

    def update(
        self, microbatches: Sequence[MicroBatch], num_global_tokens: int, num_global_samples: int
    ) -> dict[str, float]:
        """Do one optimizer step on this rank's shard of a minibatch. A collective.

        All ranks return the same metrics: loss and the metrics of `training_loss`, as means
        (`_max`: maxima) over the global minibatch's response tokens, with effective_sample_size in
        place of the moments of the ratio; and grad_norm (before clipping), lr, skipped (1 when the
        loss or gradient was not finite and no update was applied), skipped_total, seconds.
        """
        started = time.perf_counter()
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        maxima: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        scale = LossScale(num_global_tokens, num_global_samples, self.max_response_tokens)
        for microbatch in microbatches:
            batch = to_tensors(microbatch, device=self.device)
            logprobs, entropies = self.engine(
                policy_inputs(microbatch, device=self.device), self.temperature
            )
            part = training_loss(logprobs, entropies, batch, self.algorithm, scale)
            self.engine.backward(part.loss)
            for name, value in (part.sums | {"loss": part.loss.detach()}).items():
                sums[name] += value
            for name, value in part.maxima.items():
                maxima[name] = torch.maximum(maxima[name], value)
        metrics = self._apply_gradient(sums, maxima)
        moments = metrics.pop("engine_ratio_mean"), metrics.pop("engine_ratio_square")
        metrics["effective_sample_size"] = effective_sample_size(*moments)
        return metrics | {"seconds": time.perf_counter() - started}

    @with_resident(Holds.WEIGHTS)
    def logprobs(self, microbatches: Sequence[MicroBatch]) -> list[np.ndarray]:
        """Return the current weights' log-probs, [response tokens] float32 per micro-batch. A
        collective under ZeRO-3.
        """
        return response_logprobs(self.engine, microbatches, temperature=self.temperature, device=self.device)

    @with_resident(Holds.WEIGHTS)
    def flat_weights(self, version: int) -> tuple[WeightManifest | None, np.ndarray | None, Probe | None]:
        """Return manifest, buffer and probe of the weights. A collective.

        The uint8 buffer holds all parameters, cast to `sync_dtype`. Rank 0 returns three values, so
        that Ray stores them as three objects. Other ranks return None three times.
        """
        probe = self._probe()
        dtype = DTYPES[self.sync_dtype]
        if self._sync_buffer is None:
            size = self.engine.num_parameters if self.rank == 0 else 0
            self._sync_buffer = torch.empty(size, dtype=dtype)
        buffer = self._sync_buffer
        names, shapes, offsets, end = [], [], [], 0
        for name, parameter in self.engine.parameters(dtype):
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
            version,
            tuple(names),
            tuple(shapes),
            tuple(offsets),
            self.sync_dtype,
            num_bytes=flat.nbytes,
            digest=flat_digest(flat),
        )
        return manifest, flat, probe

    @with_resident(Holds.WEIGHTS)
    def flat_again(self, version: int) -> tuple[WeightManifest | None, np.ndarray | None, Probe | None]:
        """Return `flat_weights` of the version that was announced last, for engines that its
        broadcast did not reach. A collective. None three times on all ranks when the weights have
        been updated since.
        """
        if self._announced != (version, self.num_updates):
            return None, None, None
        found = self.flat_weights(version)
        self._sync_buffer = None  # rarely needed, and as large as the model
        return found

    @with_resident(Holds.WEIGHTS)
    def announce(self, version: int, chunk_bytes: int) -> tuple[WeightManifest | None, Probe]:
        """Return manifest (rank 0) and probe of a version that `send_weights` will broadcast. A
        collective.
        """
        self._announced = version, self.num_updates
        probe = self._probe()
        return self.sender.announce(version, chunk_bytes), probe

    def transfer_place(self) -> str:
        """Return this rank's GPU or host."""
        return self.sender.place

    def open_store(self, timeout_s: float) -> tuple[str, int]:
        """Open the store of a new group and return its address."""
        return self.sender.open_store(ray.util.get_node_ip_address(), timeout_s)

    def join_group(self, epoch: int, transport: str, size: int, timeout_s: float) -> str:
        """Form a group of engines with this rank as its sender. Returns why that failed, or an
        empty text.
        """
        return self.sender.join(epoch, transport, size, timeout_s)

    @with_resident(Holds.WEIGHTS)
    def send_weights(self, version: int, epoch: int, timeout_s: float) -> str:
        """Broadcast the announced version to the group of an epoch. A collective. Returns why that
        failed, or an empty text.
        """
        if self._announced != (version, self.num_updates):
            return f"the weights are not those of version {version} any more"
        return self.sender.send(version, epoch, timeout_s)

    @property
    def sender(self) -> ChunkSender:
        if self._sender is None:
            self._sender = ChunkSender(
                partial(self.engine.parameters, DTYPES[self.sync_dtype]),
                dtype=self.sync_dtype,
                device=self.device,
                is_first=self.rank == 0,
            )
        return self._sender

    @torch.no_grad()
    def _probe(self) -> Probe:
        """Return a fixed random token sequence and its log-probs, which an engine must
        reproduce.
        """
        # Embedding tables are often padded beyond the last token id, and engines refuse such ids.
        highest = max(2, int(0.9 * self.engine.model.config.get_text_config().vocab_size))
        generator = np.random.default_rng(0)
        token_ids = generator.integers(0, highest, size=PROBE_TOKENS)
        logprobs, _ = self.engine(sequence_inputs(token_ids, device=self.device), 1.0)
        return tuple(token_ids.tolist()), tuple(logprobs.tolist())

    def _load_model(self) -> PolicyModel:
        settings = self.settings
        return load_policy(
            self.model_path,
            dtype=settings.dtype,
            attention=settings.attention,
            gradient_checkpointing=settings.gradient_checkpointing,
            entropy_gradient=self.algorithm.entropy_coefficient > 0,
            **self._placement(),
        )

    def _write_config(self, directory: Path, tokenizer: Any) -> None:
        config = read_config(self.model_path)
        config.dtype = self.settings.dtype
        config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        copy_generation_config(self.model_path, directory)


LearnerActor = ray.remote(concurrency_groups=VITAL)(LearnerRank)
