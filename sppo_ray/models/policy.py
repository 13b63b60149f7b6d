"""The policy as the learner runs it: a causal LM whose forward yields the log-probs of the response tokens only."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from sppo_ray.errors import UserError
from sppo_ray.models.loading import Attention, enable_gradient_checkpointing, load_model

MAX_LOGITS = 2**26
"""Logits held at a time (256 MiB in float32). More response tokens than that go through the head in chunks, whose
logits are computed again in the backward pass."""


class LogprobHead(nn.Module):
    """A language-model head that never holds all logits: hidden states and targets in, log-probs and entropies out.

    It takes the place of the model's own head and keeps its parameters and their names. All chunks run inside ONE
    module call, so that ZeRO-3 gathers the weight once on every rank, however many chunks a rank has.
    """

    def __init__(self, head: nn.Linear, max_logits: int, *, entropy_gradient: bool = False) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias
        self.entropy_gradient = entropy_gradient
        self.rows_per_chunk = max(1, max_logits // head.out_features)

    def forward(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """
        Args:
            hidden: [N, D] final hidden states.
            targets: [N] int64, the token that each position is to predict.
            temperature: > 0, divides the logits.

        Returns:
            log softmax(logits / temperature)[target], [N] float32; the distributions' entropies in nats, [N] float32,
            with a gradient only when the head was made for it (an entropy bonus): it keeps two more tensors of logits.
        """
        if hidden.shape[0] <= self.rows_per_chunk:
            return self._chunk(hidden, targets, temperature)
        parts = [
            checkpoint(self._chunk, rows, wanted, temperature, use_reentrant=False, preserve_rng_state=False)
            for rows, wanted in zip(hidden.split(self.rows_per_chunk), targets.split(self.rows_per_chunk), strict=True)
        ]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _chunk(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logits = linear(hidden, self.weight, self.bias).float() / temperature
        log_distribution = logits.log_softmax(dim=-1)
        with torch.set_grad_enabled(self.entropy_gradient and torch.is_grad_enabled()):
            entropies = -(log_distribution.exp() * log_distribution).sum(dim=-1)
        return log_distribution.gather(1, targets[:, None]).squeeze(1), entropies


class PolicyModel(nn.Module):
    """Wraps a Transformers causal LM; `self.model`'s parameters keep their Transformers names."""

    def __init__(self, model: nn.Module, max_logits: int, *, entropy_gradient: bool = False) -> None:
        super().__init__()
        self.model = model
        head = LogprobHead(model.get_output_embeddings(), max_logits, entropy_gradient=entropy_gradient)
        model.set_output_embeddings(head)

    def forward(self, token_ids: Tensor, loss_mask: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """
        Args:
            token_ids: [B, T] int64, padded on the RIGHT: under causal attention no real token sees the padding, so
                there is no attention mask and positions count from 0.
            loss_mask: [B, T] bool, true at t where token t + 1 is wanted; N entries in all.
            targets: [N] int64, those tokens.

        Returns:
            (log-probs, entropies), both [N] float32, as `LogprobHead`.
        """
        hidden = self.model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        return self.model.get_output_embeddings()(hidden[loss_mask], targets, temperature)


def load_policy(
    directory: str | Path,
    *,
    dtype: str,
    attention: Attention = "auto",
    gradient_checkpointing: bool = False,
    max_logits: int = MAX_LOGITS,
    entropy_gradient: bool = False,
) -> PolicyModel:
    """Load a causal LM for training; `entropy_gradient` for an entropy bonus in the loss.

    Raises:
        UserError: the directory holds no usable checkpoint, or the model's logits are not a plain linear map of its
            last hidden states (soft-capped or scaled logits).
    """
    model, _ = load_model(AutoModelForCausalLM, directory, dtype=dtype, attention=attention)
    _check_head(model, directory)
    if gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return PolicyModel(model, max_logits, entropy_gradient=entropy_gradient)


@torch.no_grad()
def _check_head(model: nn.Module, directory: str | Path) -> None:
    probe = torch.arange(4)[None]
    head = model.get_output_embeddings()
    plain = isinstance(head, nn.Linear)
    if plain:
        expected = model(input_ids=probe, use_cache=False).logits
        hidden = model.base_model(input_ids=probe, use_cache=False).last_hidden_state
        plain = torch.equal(head(hidden).to(expected.dtype), expected)
    if not plain:
        raise UserError(
            f"model {directory}: {type(model).__name__} does more to its logits than a linear head (e.g. soft-capping or "
            "scaling), which the chunked log-probs of the learner do not reproduce: use another policy model"
        )
