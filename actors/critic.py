"""The critic: one rank of a DeepSpeed group that predicts, from the prompt alone, whether the policy will solve it.

    values:  prompts --> value logits              while the rollout is still generating
    update:  prompts, rewards --> BCE --> one optimizer step, while the policy learns
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from actors.base import TrainingRank
from sppo_ray.algorithms.tensor_ops import pad_right
from sppo_ray.algorithms.value_loss import check_rewards, explained_variance, value_loss
from sppo_ray.config import CriticSettings
from sppo_ray.data.batching import chunk
from sppo_ray.models.loading import read_config
from sppo_ray.models.value_head import ValueModel, choose_pad_token, load_value_model

TokenIds = Sequence[tuple[int, ...]]
_FILLER: TokenIds = ((0,),)  # a forward's worth of nothing, for a rank with fewer batches than another


class CriticRank(TrainingRank):
    """See `TrainingRank` for the order of calls. The caller deals the prompts to the ranks."""

    settings: CriticSettings

    def __init__(
        self, rank: int, world_size: int, settings: CriticSettings, *, model_path: str, total_updates: int, seed: int
    ) -> None:
        super().__init__(rank, world_size, settings, model_path=model_path, total_updates=total_updates, seed=seed)
        self._prompt_endings: set[int] = set()  # ids of last prompt tokens, which the export's pad id has to avoid

    @torch.no_grad()
    def values(self, token_ids: TokenIds) -> list[float]:
        """value_logit of each of this rank's prompts, in their order. A collective under ZeRO-3."""
        batches = self._batches(token_ids)
        logits = [0.0] * len(token_ids)
        for indices in batches:
            for index, logit in zip(indices, self._logits([token_ids[i] for i in indices]).tolist(), strict=True):
                logits[index] = logit
        self._fill_up(len(batches), backward=False)
        return logits

    def update(self, token_ids: TokenIds, rewards: Sequence[float], num_global: int) -> dict[str, float]:
        """One optimizer step on this rank's prompts and rewards, of `num_global` over all ranks. A collective.

        Metrics are means over the global batch: loss (nats), value_mean, reward_mean, brier, explained_variance;
        then grad_norm (before clipping), lr, skipped, skipped_total, seconds.

        Raises:
            UserError: a reward outside [0, 1], before anything is computed.
        """
        started = time.perf_counter()
        check_rewards(rewards)
        batches = self._batches(token_ids)
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for indices in batches:
            wanted = torch.tensor([rewards[i] for i in indices], dtype=torch.float32, device=self.device)
            part = value_loss(self._logits([token_ids[i] for i in indices]), wanted, num_global_samples=num_global)
            self.engine.backward(part.loss)
            for name, value in (part.sums | {"loss": part.loss.detach()}).items():
                sums[name] += value
        self._fill_up(len(batches), backward=True)
        lr = self._next_learning_rate()
        outcome = self.engine.step(lr)
        self._count_update(outcome.skipped)
        means = self.engine.reduce({name: sums[name] for name in _SUMS}, {})
        moments = {name: means.pop(name) for name in ("reward_square", "error_mean")}
        return means | {
            "explained_variance": explained_variance(**moments, reward_mean=means["reward_mean"], brier=means["brier"]),
            "grad_norm": outcome.grad_norm,
            "lr": lr,
            "skipped": float(outcome.skipped),
            "skipped_total": float(self.num_skipped),
            "seconds": time.perf_counter() - started,
        }

    def _batches(self, token_ids: TokenIds) -> list[list[int]]:
        self._prompt_endings.update(ids[-1] for ids in token_ids)
        return chunk([len(ids) for ids in token_ids], self.settings.max_tokens_per_microbatch)

    def _logits(self, token_ids: TokenIds) -> Tensor:
        lengths = torch.tensor([len(ids) for ids in token_ids], device=self.device)
        return self.engine(pad_right(token_ids, pad_id=0).to(self.device), lengths)

    def _fill_up(self, done: int, *, backward: bool) -> None:
        """Take part in the forwards and backwards of ranks that have more batches: under ZeRO each is a collective."""
        if self.world_size == 1 or not (backward or self.engine.stage == 3):
            return
        for _ in range(self.engine.maximum(done) - done):
            logits = self._logits(_FILLER)
            if backward:
                self.engine.backward(0.0 * logits.sum())

    def _load_model(self) -> ValueModel:
        settings = self.settings
        return load_value_model(
            self.model_path,
            dtype=settings.dtype,
            attention=settings.attention,
            gradient_checkpointing=settings.gradient_checkpointing,
        )

    def _write_config(self, directory: Path, tokenizer: Any) -> None:
        config = read_config(self.model_path)
        config.update({"num_labels": 1, "architectures": [type(self.engine.model).__name__], "dtype": self.settings.dtype})
        config.pad_token_id = choose_pad_token(tokenizer, self._prompt_endings)
        config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    def _extra_state(self) -> dict[str, Any]:
        return {"prompt_endings": sorted(self._prompt_endings)}

    def _restore_extra_state(self, state: dict[str, Any]) -> None:
        self._prompt_endings = set(state["prompt_endings"])


_SUMS = ("loss", "value_mean", "reward_mean", "brier", "reward_square", "error_mean")

CriticActor = ray.remote(CriticRank)
