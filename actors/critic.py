"""The critics. Each actor is one rank of a DeepSpeed group.

CriticRank        prompts --> value logits, during generation
                  prompts, rewards --> BCE --> one optimizer step, during the policy's update
TokenCriticRank   prompts, responses --> the value before each response token
                  prompts, responses, returns --> squared error or BCE --> one optimizer step
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from actors.base import TrainingRank
from actors.liveness import VITAL
from actors.offload import with_resident
from sppo_ray.algorithms.value_loss import (
    ValueLoss,
    check_rewards,
    explained_variance,
    token_value_loss,
    value_loss,
)
from sppo_ray.config import CriticSettings
from sppo_ray.data.packing import bins
from sppo_ray.models.critic_output import CriticLoss, CriticReads
from sppo_ray.models.loading import read_config
from sppo_ray.models.value_head import (
    ValueModel,
    choose_pad_token,
    freeze_parameters,
    load_value_model,
    value_inputs,
)
from sppo_ray.protocols import Holds
from sppo_ray.types import TokenRows

_FILLER = TokenRows.of([(0,)])


class ValueRank(TrainingRank):
    """Base class of the critics: forward passes of the value head, and the export.

    The caller distributes the samples over the ranks.
    """

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
        super().__init__(
            rank, world_size, settings, model_path=model_path, total_updates=total_updates, seed=seed
        )
        self.critic_loss: CriticLoss = critic_loss
        # ids of last prompt tokens, which the export's pad id has to avoid
        self._prompt_endings: set[int] = set()

    def values(self, prompts: TokenRows) -> np.ndarray:
        """Return the head's output at the last token of each prompt, [R] float32: a value logit, or
        the value after training by squared error. A collective under ZeRO-3.
        """
        self._note_prompts(prompts)
        return self._outputs_of(prompts, np.ones_like(prompts.lengths))

    def export(self, directory: str | Path, tokenizer_source: str | Path) -> None:
        self._prompt_endings = self.engine.union(self._prompt_endings)
        super().export(directory, tokenizer_source)

    @with_resident(Holds.WEIGHTS)
    @torch.no_grad()
    def _outputs_of(self, rows: TokenRows, counts: np.ndarray) -> np.ndarray:
        """Return the head's outputs at the last `counts[i]` tokens of each row, [counts.sum()]
        float32.
        """
        outputs: list[np.ndarray] = [np.empty(0, np.float32)] * len(rows)
        for indices in self._batches(rows, collective=self.engine.stage == 3):
            flat = self._forward(rows.pick(indices), counts[indices]).cpu().numpy()
            parts = np.split(flat, counts[indices].cumsum()[:-1])
            for index, part in zip(indices, parts, strict=False):
                outputs[index] = part
        return np.concatenate(outputs) if outputs else np.empty(0, np.float32)

    def _learn(self, losses: Iterable[ValueLoss]) -> dict[str, float]:
        """Do backward passes for `losses`, the parts of the global loss, and one optimizer step.
        Returns the metrics.
        """
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for part in losses:
            self.engine.backward(part.loss)
            for name, value in (part.sums | {"loss": part.loss.detach()}).items():
                sums[name] += value
        return self._apply_gradient(sums, {})

    def _batches(self, rows: TokenRows, *, collective: bool) -> list[list[int]]:
        """Return the row indices of each forward pass.

        With `collective`, all ranks get the same number of batches; some may be empty.
        """
        batches = bins(rows.lengths.tolist(), self.settings.max_tokens_per_microbatch)
        if collective and self.world_size > 1:
            batches += [[]] * (self.engine.maximum(len(batches)) - len(batches))
        return batches

    def _forward(self, rows: TokenRows, counts: np.ndarray) -> Tensor:
        """Return the head's outputs, [counts.sum()] float32, row after row. Without rows it still
        does a forward pass, because that is a collective.
        """
        if not len(rows):
            return self.engine(*value_inputs(_FILLER, np.ones(1, np.int32), device=self.device))[:0]
        return self.engine(*value_inputs(rows, counts, device=self.device))

    def _load_model(self) -> ValueModel:
        settings = self.settings
        model = load_value_model(
            self.model_path,
            dtype=settings.dtype,
            attention=settings.attention,
            gradient_checkpointing=settings.gradient_checkpointing,
            critic_loss=self.critic_loss,
            **self._placement(),
        )
        if settings.frozen_parameters is not None:
            freeze_parameters(model, settings.frozen_parameters, self.model_path)
        return model

    def _write_config(self, directory: Path, tokenizer: Any) -> None:
        config = read_config(self.model_path)
        config.update(
            {
                "num_labels": 1,
                "architectures": [type(self.engine.model).__name__],
                "dtype": self.settings.dtype,
            }
        )
        config.update({"critic_loss": self.critic_loss, "critic_reads": self.reads})
        config.pad_token_id = choose_pad_token(tokenizer, self._prompt_endings)
        config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    def _note_prompts(self, prompts: TokenRows) -> None:
        self._prompt_endings.update(prompts.token_ids[prompts.lengths.cumsum() - 1].tolist())

    def _extra_state(self) -> dict[str, Any]:
        # Combine all ranks, because every rank loads the state of rank 0.
        self._prompt_endings = self.engine.union(self._prompt_endings)
        return {"prompt_endings": sorted(self._prompt_endings)}

    def _restore_extra_state(self, state: dict[str, Any]) -> None:
        self._prompt_endings = set(state["prompt_endings"])


class CriticRank(ValueRank):
    """The prompt critic: predicts from the prompt whether the policy will solve it.

    See `TrainingRank` for the order of calls.
    """

    reads: CriticReads = "prompt"

    def __init__(
        self,
        rank: int,
        world_size: int,
        settings: CriticSettings,
        *,
        model_path: str,
        total_updates: int,
        seed: int,
    ) -> None:
        common = {"model_path": model_path, "total_updates": total_updates, "seed": seed}
        super().__init__(rank, world_size, settings, critic_loss="bce", **common)

    def update(self, prompts: TokenRows, rewards: np.ndarray, num_global: int) -> dict[str, float]:
        """Do one optimizer step. A collective.

        Args:
            prompts: this rank's prompts, R rows.
            rewards: [R] float32, in [0, 1].
            num_global: prompts of all ranks.

        Returns:
            Means over the global batch: loss (nats), value_mean, reward_mean, brier,
            explained_variance; and grad_norm (before clipping), lr, skipped, skipped_total,
            seconds.

        Raises:
            UserError: a reward is outside [0, 1]. Nothing is computed then.
        """
        started = time.perf_counter()
        check_rewards(rewards)
        self._note_prompts(prompts)
        metrics = self._learn(
            self._loss(prompts.pick(indices), rewards[indices], num_global)
            for indices in self._batches(prompts, collective=True)
        )
        return _explained(metrics) | {"seconds": time.perf_counter() - started}

    def _loss(self, prompts: TokenRows, rewards: np.ndarray, num_global: int) -> ValueLoss:
        logits = self._forward(prompts, np.ones_like(prompts.lengths))
        wanted = torch.tensor(rewards, dtype=torch.float32, device=self.device)
        return value_loss(logits, wanted, num_global_samples=num_global)


class TokenCriticRank(ValueRank):
    """The critic of PPO and SAO: predicts the return before each action token from the preceding
    tokens.

    The last response token ends the episode, so the critic never reads it. See `TrainingRank` for
    the order of calls.
    """

    reads: CriticReads = "prompt and response"

    def token_values(self, prompts: TokenRows, responses: TokenRows) -> np.ndarray:
        """Return the value before each response token, row after row, [N] float32. With
        cross-entropy it is a probability. A collective under ZeRO-3.
        """
        outputs = self._outputs_of(self._rows(prompts, responses), responses.lengths)
        return outputs if self.critic_loss == "mse" else 1.0 / (1.0 + np.exp(-outputs.astype(np.float64)))

    def token_update(
        self,
        prompts: TokenRows,
        responses: TokenRows,
        returns: np.ndarray,
        num_global_tokens: int,
        action_mask: np.ndarray | None = None,
    ) -> dict[str, float]:
        """Do one optimizer step on this rank's samples. A collective.

        `num_global_tokens` is the number of action tokens of all ranks, which have a return each;
        `action_mask` says which response tokens they are, [response tokens] bool, None = all.

        Returns:
            Means over the global batch's action tokens: loss, value_mean, reward_mean (of the
            returns), brier (squared error), explained_variance; and grad_norm (before clipping),
            lr, skipped, skipped_total, seconds.

        Raises:
            UserError: the loss is cross-entropy and a return is outside [0, 1].
            ValueError: returns and actions differ in length, or a response is empty.
        """
        started = time.perf_counter()
        rows, counts = self._rows(prompts, responses), responses.lengths
        masks = None if action_mask is None else np.split(action_mask, counts.cumsum()[:-1])
        actions = counts if masks is None else np.array([mask.sum() for mask in masks], dtype=np.int64)
        if len(returns) != actions.sum():
            raise ValueError("returns and actions differ in length")
        wanted = np.split(returns, actions.cumsum()[:-1])
        metrics = self._learn(
            self._loss(
                rows.pick(indices),
                counts[indices],
                _joined([wanted[index] for index in indices], np.float32),
                None if masks is None else _joined([masks[index] for index in indices], bool),
                num_global_tokens,
            )
            for indices in self._batches(rows, collective=True)
        )
        return _explained(metrics) | {"seconds": time.perf_counter() - started}

    def _loss(
        self,
        rows: TokenRows,
        counts: np.ndarray,
        returns: np.ndarray,
        action_mask: np.ndarray | None,
        num_global_tokens: int,
    ) -> ValueLoss:
        outputs = self._forward(rows, counts)
        if action_mask is not None:
            outputs = outputs[torch.from_numpy(action_mask).to(self.device)]
        wanted = torch.tensor(returns, dtype=torch.float32, device=self.device)
        return token_value_loss(outputs, wanted, kind=self.critic_loss, num_global_tokens=num_global_tokens)

    def _rows(self, prompts: TokenRows, responses: TokenRows) -> TokenRows:
        """Return prompt and response of each sample without the last token, the critic's input."""
        if len(responses) and responses.lengths.min() < 1:
            raise ValueError("a sample of the token critic needs at least one response token")
        self._note_prompts(prompts)
        pairs = zip(prompts, responses, strict=True)
        return TokenRows.of([np.concatenate((prompt, response[:-1])) for prompt, response in pairs])


def _joined(rows: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(rows) if rows else np.empty(0, dtype)


def _explained(metrics: dict[str, float]) -> dict[str, float]:
    """Replace the moments of a `ValueLoss` by the explained variance."""
    moments = {name: metrics.pop(name) for name in ("reward_square", "error_mean")}
    variance = explained_variance(**moments, reward_mean=metrics["reward_mean"], brier=metrics["brier"])
    return metrics | {"explained_variance": variance}


CriticActor = ray.remote(concurrency_groups=VITAL)(CriticRank)
TokenCriticActor = ray.remote(concurrency_groups=VITAL)(TokenCriticRank)
