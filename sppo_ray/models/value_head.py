"""The critic's model: a Transformers sequence classifier with one label.

    prompt critic   row = prompt
                    output at the last token: value of the prompt
    token critic    row = prompt + response without its last token
                    output at the last R tokens: value before each of the R response tokens; the
                    first one is the value of the prompt

Rows are concatenated. Positions are computed from their lengths and not from the pad id, because a
row may end in the pad id.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from sppo_ray.errors import UserError
from sppo_ray.models.critic_output import CriticLoss
from sppo_ray.models.loading import Attention, Sharding, enable_gradient_checkpointing, load_model
from sppo_ray.models.packed import PackedRows, last_positions, pack_rows, packed_hidden_states
from sppo_ray.types import TokenRows


class ValueModel(nn.Module):
    """Wraps a Transformers `...ForSequenceClassification` with `num_labels=1`. Parameters in
    `self.model` keep their names.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def critic_loss(self) -> CriticLoss:
        """Loss of the head's training. Its output is a logit ("bce") or the value itself
        ("mse").
        """
        return getattr(self.model.config, "critic_loss", "bce")

    def forward(self, rows: PackedRows, positions: Tensor) -> Tensor:
        """Return the head's outputs at N positions of the packed rows, [N] float32."""
        hidden = packed_hidden_states(self.model.base_model, rows)
        return self.model.score(hidden[positions]).squeeze(-1).float()

    def read(self, rows: TokenRows, counts: np.ndarray, *, device: torch.device | str) -> Tensor:
        """Return the outputs at the last `counts[i]` tokens of each row, [counts.sum()] float32."""
        return self(*value_inputs(rows, counts, device=device))


def value_inputs(
    rows: TokenRows, counts: np.ndarray, *, device: torch.device | str
) -> tuple[PackedRows, Tensor]:
    """Return the arguments of `ValueModel.forward` for the last `counts[i]` tokens of each row."""
    positions = torch.from_numpy(last_positions(rows.lengths, counts)).to(device)
    return pack_rows(rows.token_ids, rows.lengths, device=device), positions


def load_value_model(
    directory: str | Path,
    *,
    dtype: str,
    attention: Attention = "auto",
    gradient_checkpointing: bool = False,
    critic_loss: CriticLoss | None = None,
    device: str = "cpu",
    sharding: Sharding | None = None,
) -> ValueModel:
    """Load a critic from the checkpoint of a causal LM or of an exported critic.

    A new head is zero, so every value starts at 0.5 (sigmoid of a logit) or 0 (squared error). An
    exported critic keeps its head.

    Args:
        critic_loss: loss of the coming training; None = no training.
        sharding: see `load_model`.

    Raises:
        UserError: the directory has no usable checkpoint, the head has more than one label, or the
            critic was trained with another loss than `critic_loss`.
    """
    loaded = load_model(
        AutoModelForSequenceClassification,
        directory,
        dtype=dtype,
        attention=attention,
        may_lack=("score.weight",),
        device=device,
        sharding=sharding,
        num_labels=1,
    )
    model = loaded.model
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise UserError(
            f"model {directory}: {type(model).__name__} has no linear score head: use a causal LM as critic"
        )
    if loaded.missing:
        nn.init.zeros_(model.score.weight)
    else:
        _check_loss(model.config, critic_loss, directory)
    if gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return ValueModel(model)


def freeze_parameters(model: ValueModel, pattern: str, directory: str | Path) -> None:
    """Freeze the parameters whose Transformers name has a match of the regular expression
    `pattern`; the head stays trainable.

    Raises:
        UserError: the model in `directory` has no such parameter.
    """
    named = dict(model.model.named_parameters())
    found = [name for name in named if re.search(pattern, name) and not name.startswith("score.")]
    if not found:
        some = ", ".join(list(named)[:3])
        raise UserError(
            f"critic {directory}: critic.frozen_parameters {pattern!r} matches none of its parameters "
            f"({some}, ...): name a part of one, e.g. self_attn"
        )
    for name in found:
        named[name].requires_grad_(False)


def _check_loss(config: PretrainedConfig, wanted: CriticLoss | None, directory: str | Path) -> None:
    found = getattr(config, "critic_loss", wanted)
    if wanted is not None and found != wanted:
        raise UserError(
            f"critic {directory}: was trained by critic_loss {found}, this run trains by {wanted}, and the "
            "head's output means "
            f"another thing then: set algorithm.critic_loss to {found} (sppo's critic is always bce), or "
            "start from a causal LM"
        )


def choose_pad_token(tokenizer: Any, prompt_endings: Collection[int]) -> int:
    """Set a pad token that no prompt ends with, and return its id.

    Transformers reads the exported critic at the last token that is not the pad token, so no prompt
    may end with the pad token. The tokenizer's pad token is kept if possible. Else another special
    token is used, or the last vocabulary entry with which no prompt ends.
    """
    own = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    candidates = [*(token for token in own if token is not None), *range(len(tokenizer) - 1, -1, -1)]
    chosen = next(token for token in candidates if token not in prompt_endings)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)
    return chosen
