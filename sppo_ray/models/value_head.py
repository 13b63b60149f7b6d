"""A critic: a Transformers sequence classifier with one label, read at the end of each row.

    prompt critic   row = prompt                                read at its last token: the value of the prompt
    token critic    row = prompt + response without its last    read at its last R positions: the value before each of the
                                                                R response tokens; R = 1 is the value of the prompt

Positions come from the rows' lengths. Taking position -1 would silently need left padding, and looking for the pad id
would stumble over a row that ends in it. Under causal attention no real token sees the padding.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from sppo_ray.errors import UserError
from sppo_ray.models.critic_output import CriticLoss
from sppo_ray.models.loading import Attention, enable_gradient_checkpointing, load_model


class ValueModel(nn.Module):
    """Wraps a Transformers `...ForSequenceClassification` with `num_labels=1`; `self.model` keeps its names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def critic_loss(self) -> CriticLoss:
        """What the head was trained by: its output is a logit ("bce") or the value itself ("mse")."""
        return getattr(self.model.config, "critic_loss", "bce")

    def forward(self, token_ids: Tensor, lengths: Tensor, counts: Tensor | None = None) -> Tensor:
        """
        Args:
            token_ids: [B, T] int64, rows padded on the RIGHT with any id.
            lengths: [B] int64, tokens of each row, >= 1.
            counts: [B] int64, how many of a row's last positions to read, in [1, length]; None = 1 each.

        Returns:
            [N] float32, the head's outputs, N = counts.sum(): row after row, each in time order.
        """
        hidden = self.model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        return self.model.score(hidden[_last_positions(lengths, counts, token_ids.shape[1])]).squeeze(-1).float()


def _last_positions(lengths: Tensor, counts: Tensor | None, width: int) -> Tensor:
    """[B, width] bool, true at the last `counts` of each row's `lengths` positions."""
    time = torch.arange(width, device=lengths.device)
    first = lengths - (1 if counts is None else counts)
    return (time >= first[:, None]) & (time < lengths[:, None])


def load_value_model(
    directory: str | Path,
    *,
    dtype: str,
    attention: Attention = "auto",
    gradient_checkpointing: bool = False,
    critic_loss: CriticLoss | None = None,
) -> ValueModel:
    """A critic from a causal LM's checkpoint, or from a critic that was exported before.

    A fresh head is zero, so that every value starts at 0.5 (a logit's sigmoid) or 0 (squared error); an exported critic
    keeps its own.

    Args:
        critic_loss: what it will be trained by; None = it will only be read.

    Raises:
        UserError: the directory holds no usable checkpoint, one with more than one label, or a critic that was trained by
            another loss than `critic_loss`, whose head therefore means something else.
    """
    model, missing = load_model(
        AutoModelForSequenceClassification, directory, dtype=dtype, attention=attention, may_lack=("score.weight",), num_labels=1
    )
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise UserError(f"model {directory}: {type(model).__name__} has no linear score head: use a causal LM as critic")
    if missing:
        nn.init.zeros_(model.score.weight)
    else:
        _check_loss(model.config, critic_loss, directory)
    if gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return ValueModel(model)


def _check_loss(config: PretrainedConfig, wanted: CriticLoss | None, directory: str | Path) -> None:
    found = getattr(config, "critic_loss", wanted)
    if wanted is not None and found != wanted:
        raise UserError(
            f"critic {directory}: was trained by critic_loss {found}, this run trains by {wanted}, and the head's output means "
            f"another thing then: set algorithm.critic_loss to {found} (sppo's critic is always bce), or start from a causal LM"
        )


def choose_pad_token(tokenizer: Any, prompt_endings: Collection[int]) -> int:
    """Make sure that the exported critic can be told its padding, and return the id.

    Plain Transformers pools at the last token that is not the pad id, so no prompt may END in it (elsewhere it does no
    harm). The tokenizer's own pad token is kept unless a prompt of the run ended in it; then another special token
    takes its place, or the last vocabulary entry that ended none.
    """
    own = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    candidates = [*(token for token in own if token is not None), *range(len(tokenizer) - 1, -1, -1)]
    chosen = next(token for token in candidates if token not in prompt_endings)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)
    return chosen
