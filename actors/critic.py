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
_FILLER: TokenIds = ((0,),)


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
        value_logits = [0.0] * len(token_ids)
        for indices in self._batches(token_ids, collective=self.engine.stage == 3):
            logits = self._logits([token_ids[i] for i in indices])[: len(indices)]
            for index, logit in zip(indices, logits.tolist(), strict=True):
                value_logits[index] = logit
        return value_logits

    def update(self, token_ids: TokenIds, rewards: Sequence[float], num_global: int) -> dict[str, float]:
        """One optimizer step on this rank's prompts and rewards, of `num_global` over all ranks. A collective.

        Metrics are means over the global batch: loss (nats), value_mean, reward_mean, brier, explained_variance;
        then grad_norm (before clipping), lr, skipped, skipped_total, seconds.

        Raises:
            UserError: a reward outside [0, 1], before anything is computed.
        """
        started = time.perf_counter()
        check_rewards(rewards)
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for indices in self._batches(token_ids, collective=True):
            logits = self._logits([token_ids[i] for i in indices])
            wanted = torch.tensor([rewards[i] for i in indices], dtype=torch.float32, device=self.device)
            part = value_loss(logits[: len(indices)], wanted, num_global_samples=num_global)
            self.engine.backward(part.loss)
            for name, value in (part.sums | {"loss": part.loss.detach()}).items():
                sums[name] += value
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

    def export(self, directory: str | Path, tokenizer_source: str | Path) -> None:
        self._prompt_endings = self.engine.union(self._prompt_endings)
        super().export(directory, tokenizer_source)

    def _batches(self, token_ids: TokenIds, *, collective: bool) -> list[list[int]]:
        """Indices of the prompts of each forward.

        Where a forward or its backward is a collective, a rank with fewer batches than another gets empty ones.
        """
        self._prompt_endings.update(ids[-1] for ids in token_ids)
        batches = chunk([len(ids) for ids in token_ids], self.settings.max_tokens_per_microbatch)
        if collective and self.world_size > 1:
            batches += [[]] * (self.engine.maximum(len(batches)) - len(batches))
        return batches

    def _logits(self, token_ids: TokenIds) -> Tensor:
        """[number of prompts] float32; of no prompts, one that means nothing."""
        token_ids = token_ids or _FILLER
        lengths = torch.tensor([len(ids) for ids in token_ids], device=self.device)
        return self.engine(pad_right(token_ids, pad_id=0).to(self.device), lengths)

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
