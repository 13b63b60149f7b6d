"""The prompt-only critic: a Transformers sequence classifier with one label, pooled at the last PROMPT token.

The pooled position comes from the prompt's length. Taking position -1 would silently need left padding, and looking
for the pad id would stumble over a prompt that ends in it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from sppo_ray.errors import UserError
from sppo_ray.models.loading import Attention, enable_gradient_checkpointing, load_model


class ValueModel(nn.Module):
    """Wraps a Transformers `...ForSequenceClassification` with `num_labels=1`; `self.model` keeps its names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """
        Args:
            token_ids: [B, T] int64, prompts padded on the RIGHT with any id.
            lengths: [B] int64, tokens of each prompt, >= 1.

        Returns:
            value_logit [B] float32; its sigmoid is the probability that the policy solves the prompt.
        """
        hidden = self.model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
        return self.model.score(last).squeeze(-1).float()


def load_value_model(
    directory: str | Path, *, dtype: str, attention: Attention = "auto", gradient_checkpointing: bool = False
) -> ValueModel:
    """A critic from a causal LM's checkpoint, or from a critic that was exported before.

    A fresh head is zero, so that every prompt's value starts at 0.5; an exported critic keeps its own.

    Raises:
        UserError: the directory holds no usable checkpoint, or one with more than one label.
    """
    model, missing = load_model(
        AutoModelForSequenceClassification, directory, dtype=dtype, attention=attention, may_lack=("score.weight",), num_labels=1
    )
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise UserError(f"model {directory}: {type(model).__name__} has no linear score head: use a causal LM as critic")
    if missing:
        nn.init.zeros_(model.score.weight)
    if gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return ValueModel(model)


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
