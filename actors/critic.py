"""The critics: one rank of a DeepSpeed group each.

CriticRank        prompts --> value logits             while the rollout is still generating
                  prompts, rewards --> BCE --> one optimizer step, while the policy learns
TokenCriticRank   prompts, responses --> the value before each response token, once the responses are there
                  prompts, responses, returns --> squared error or BCE --> one optimizer step
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from actors.base import TrainingRank
from actors.liveness import VITAL
from sppo_ray.algorithms.tensor_ops import pad_right
from sppo_ray.algorithms.value_loss import ValueLoss, check_rewards, explained_variance, token_value_loss, value_loss
from sppo_ray.config import CriticSettings
from sppo_ray.data.batching import chunk
from sppo_ray.models.critic_output import CriticLoss, CriticReads, sigmoid
from sppo_ray.models.loading import read_config
from sppo_ray.models.value_head import ValueModel, choose_pad_token, load_value_model

TokenIds = Sequence[tuple[int, ...]]
_FILLER: tuple[int, ...] = (0,)


class ValueRank(TrainingRank):
    """What the two critics share: forwards of a value head, and the export. The caller deals the samples to the ranks."""

    settings: CriticSettings
    reads: CriticReads

    def __init__(
        self,
        rank: int,
        world_size: int,
        settings: CriticSettings,
        *,
        critic_loss: CriticLoss,
        model_path: str,
        total_updates: int,
        seed: int,
    ) -> None:
        super().__init__(rank, world_size, settings, model_path=model_path, total_updates=total_updates, seed=seed)
        self.critic_loss: CriticLoss = critic_loss
        self._prompt_endings: set[int] = set()  # ids of last prompt tokens, which the export's pad id has to avoid

    def values(self, token_ids: TokenIds) -> list[float]:
        """The head's output at the last token of each of this rank's prompts, in their order: a value logit, or after
        squared error the value. A collective under ZeRO-3."""
        self._note_prompts(token_ids)
        return [output for (output,) in self._outputs_of(token_ids, [1] * len(token_ids))]

    def export(self, directory: str | Path, tokenizer_source: str | Path) -> None:
        self._prompt_endings = self.engine.union(self._prompt_endings)
        super().export(directory, tokenizer_source)

    @torch.no_grad()
    def _outputs_of(self, rows: TokenIds, counts: Sequence[int]) -> list[tuple[float, ...]]:
        """The head's outputs at the last `counts[i]` positions of each row."""
        outputs: list[tuple[float, ...]] = [()] * len(rows)
        for indices in self._batches(rows, collective=self.engine.stage == 3):
            flat = self._forward([rows[i] for i in indices], [counts[i] for i in indices])
            for index, part in zip(indices, flat.split([counts[i] for i in indices]), strict=True):
                outputs[index] = tuple(part.tolist())
        return outputs

    def _learn(self, losses: Iterable[ValueLoss]) -> dict[str, float]:
        """Backward through each part of the global batch's loss, one optimizer step, and the metrics of both."""
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for part in losses:
            self.engine.backward(part.loss)
            for name, value in (part.sums | {"loss": part.loss.detach()}).items():
                sums[name] += value
        return self._apply_gradient(sums, {})

    def _batches(self, rows: TokenIds, *, collective: bool) -> list[list[int]]:
        """Indices of the rows of each forward.

        Where a forward or its backward is a collective, a rank with fewer batches than another gets empty ones.
        """
        batches = chunk([len(ids) for ids in rows], self.settings.max_tokens_per_microbatch)
        if collective and self.world_size > 1:
            batches += [[]] * (self.engine.maximum(len(batches)) - len(batches))
        return batches

    def _forward(self, rows: TokenIds, counts: Sequence[int]) -> Tensor:
        """[sum of counts] float32, row after row. Of no rows a forward all the same, which all ranks take part in."""
        padded = pad_right(rows or [_FILLER], pad_id=0).to(self.device)
        lengths = torch.tensor([len(ids) for ids in rows] or [1], device=self.device)
        outputs = self.engine(padded, lengths, torch.tensor(counts or [1], device=self.device))
        return outputs[: sum(counts)]

    def _load_model(self) -> ValueModel:
        settings = self.settings
        return load_value_model(
            self.model_path,
            dtype=settings.dtype,
            attention=settings.attention,
            gradient_checkpointing=settings.gradient_checkpointing,
            critic_loss=self.critic_loss,
        )

    def _write_config(self, directory: Path, tokenizer: Any) -> None:
        config = read_config(self.model_path)
        config.update({"num_labels": 1, "architectures": [type(self.engine.model).__name__], "dtype": self.settings.dtype})
        config.update({"critic_loss": self.critic_loss, "critic_reads": self.reads})
        config.pad_token_id = choose_pad_token(tokenizer, self._prompt_endings)
        config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    def _note_prompts(self, prompt_ids: TokenIds) -> None:
        self._prompt_endings.update(ids[-1] for ids in prompt_ids)

    def _extra_state(self) -> dict[str, Any]:
        # Of all ranks: rank 0's state is the one that every rank gets back.
        self._prompt_endings = self.engine.union(self._prompt_endings)
        return {"prompt_endings": sorted(self._prompt_endings)}

    def _restore_extra_state(self, state: dict[str, Any]) -> None:
        self._prompt_endings = set(state["prompt_endings"])


class CriticRank(ValueRank):
    """The prompt critic: predicts, from the prompt alone, whether the policy will solve it. See `TrainingRank` for the order
    of calls."""

    reads: CriticReads = "prompt"

    def __init__(
        self, rank: int, world_size: int, settings: CriticSettings, *, model_path: str, total_updates: int, seed: int
    ) -> None:
        common = {"model_path": model_path, "total_updates": total_updates, "seed": seed}
        super().__init__(rank, world_size, settings, critic_loss="bce", **common)

    def update(self, token_ids: TokenIds, rewards: Sequence[float], num_global: int) -> dict[str, float]:
        """One optimizer step on this rank's prompts and rewards, of `num_global` over all ranks. A collective.

        Metrics are means over the global batch: loss (nats), value_mean, reward_mean, brier, explained_variance;
        then grad_norm (before clipping), lr, skipped, skipped_total, seconds.

        Raises:
            UserError: a reward outside [0, 1], before anything is computed.
        """
        started = time.perf_counter()
        check_rewards(rewards)
        self._note_prompts(token_ids)
        metrics = self._learn(
            self._loss([token_ids[i] for i in indices], [rewards[i] for i in indices], num_global)
            for indices in self._batches(token_ids, collective=True)
        )
        return _explained(metrics) | {"seconds": time.perf_counter() - started}

    def _loss(self, token_ids: TokenIds, rewards: Sequence[float], num_global: int) -> ValueLoss:
        logits = self._forward(token_ids, [1] * len(token_ids))
        wanted = torch.tensor(rewards, dtype=torch.float32, device=self.device)
        return value_loss(logits, wanted, num_global_samples=num_global)


class TokenCriticRank(ValueRank):
    """PPO's critic: reads prompt and response and values the state before each response token. See `TrainingRank` for the
    order of calls.

    The last response token ends the episode, so the critic never reads it.
    """

    reads: CriticReads = "prompt and response"

    def token_values(self, prompt_ids: TokenIds, response_ids: TokenIds) -> list[tuple[float, ...]]:
        """The value before each response token, in the order of the samples; of a critic trained by cross-entropy the
        probability. A collective under ZeRO-3."""
        rows, counts = self._rows(prompt_ids, response_ids)
        outputs = self._outputs_of(rows, counts)
        return outputs if self.critic_loss == "mse" else [tuple(map(sigmoid, row)) for row in outputs]

    def token_update(
        self, prompt_ids: TokenIds, response_ids: TokenIds, returns: Sequence[tuple[float, ...]], num_global_tokens: int
    ) -> dict[str, float]:
        """One optimizer step on this rank's samples; `num_global_tokens` response tokens over all ranks. A collective.

        Metrics are means over the global batch's response tokens: loss, value_mean, reward_mean (of the returns), brier (the
        squared error), explained_variance; then grad_norm (before clipping), lr, skipped, skipped_total, seconds.

        Raises:
            UserError: cross-entropy, and a return outside [0, 1].
            ValueError: returns and response of a sample differ in length, or the response is empty.
        """
        started = time.perf_counter()
        rows, counts = self._rows(prompt_ids, response_ids)
        if [len(row) for row in returns] != counts:
            raise ValueError("returns and response differ in length")
        metrics = self._learn(
            self._loss([rows[i] for i in indices], [returns[i] for i in indices], num_global_tokens)
            for indices in self._batches(rows, collective=True)
        )
        return _explained(metrics) | {"seconds": time.perf_counter() - started}

    def _loss(self, rows: TokenIds, returns: Sequence[tuple[float, ...]], num_global_tokens: int) -> ValueLoss:
        outputs = self._forward(rows, [len(row) for row in returns])
        wanted = torch.tensor([target for row in returns for target in row], dtype=torch.float32, device=self.device)
        return token_value_loss(outputs, wanted, kind=self.critic_loss, num_global_tokens=num_global_tokens)

    def _rows(self, prompt_ids: TokenIds, response_ids: TokenIds) -> tuple[list[tuple[int, ...]], list[int]]:
        """What the critic reads of each sample, and how many values: one before each response token."""
        if not all(response_ids):
            raise ValueError("a sample of the token critic needs at least one response token")
        self._note_prompts(prompt_ids)
        rows = [(*prompt, *response[:-1]) for prompt, response in zip(prompt_ids, response_ids, strict=True)]
        return rows, [len(response) for response in response_ids]


def _explained(metrics: dict[str, float]) -> dict[str, float]:
    """The moments of a `ValueLoss` as what they are for."""
    moments = {name: metrics.pop(name) for name in ("reward_square", "error_mean")}
    variance = explained_variance(**moments, reward_mean=metrics["reward_mean"], brier=metrics["brier"])
    return metrics | {"explained_variance": variance}


CriticActor = ray.remote(concurrency_groups=VITAL)(CriticRank)
TokenCriticActor = ray.remote(concurrency_groups=VITAL)(TokenCriticRank)
