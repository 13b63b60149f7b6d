"""The learner's policy: a causal LM whose forward returns the log-probs of the response tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from sppo_ray.errors import UserError
from sppo_ray.models.loading import Attention, Sharding, enable_gradient_checkpointing, explained, load_model
from sppo_ray.models.packed import PolicyInputs, packed_hidden_states

MAX_LOGITS = 2**26
"""Maximum number of logits in memory (256 MiB in float32). More response tokens go through the head
in chunks, whose logits are recomputed in the backward pass.
"""


class LogprobHead(nn.Module):
    """A language-model head that computes log-probs and entropies in chunks of tokens.

    It limits the logits in memory. It replaces the model's head and keeps its parameters and their
    names. All chunks run inside one module call, so ZeRO-3 gathers the weight once on every rank,
    for any number of chunks.
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
            targets: [N] int64, the token that each position predicts.
            temperature: > 0, divides the logits.

        Returns:
            log softmax(logits / temperature)[target], [N] float32, and the entropies of the
            distributions in nats, [N] float32. Entropies have a gradient only if the head was
            created with it, for an entropy bonus; it needs two more tensors of logits.
        """
        if hidden.shape[0] <= self.rows_per_chunk:
            return self._chunk(hidden, targets, temperature)
        parts = [
            checkpoint(self._chunk, rows, wanted, temperature, use_reentrant=False, preserve_rng_state=False)
            for rows, wanted in zip(
                hidden.split(self.rows_per_chunk), targets.split(self.rows_per_chunk), strict=True
            )
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

    def forward(self, inputs: PolicyInputs, temperature: float) -> tuple[Tensor, Tensor]:
        """Return log-probs and entropies of the N response tokens, both [N] float32, as
        `LogprobHead`.
        """
        hidden = packed_hidden_states(self.model.base_model, inputs.rows)
        return self.model.get_output_embeddings()(hidden[inputs.positions], inputs.targets, temperature)


def load_policy(
    directory: str | Path,
    *,
    dtype: str,
    attention: Attention = "auto",
    gradient_checkpointing: bool = False,
    max_logits: int = MAX_LOGITS,
    entropy_gradient: bool = False,
    device: str = "cpu",
    sharding: Sharding | None = None,
) -> PolicyModel:
    """Load a causal LM for training. `entropy_gradient` is needed for an entropy bonus.
    `sharding`: see `load_model`.

    Raises:
        UserError: the directory has no usable checkpoint, or the model's logits are not a linear
            map of its last hidden states (soft-capped or scaled logits).
    """
    loaded = load_model(
        AutoModelForCausalLM, directory, dtype=dtype, attention=attention, device=device, sharding=sharding
    )
    with explained(directory, attention=attention, device=device):
        linear_head = _has_linear_head(loaded.probe)
    model = loaded.model
    if not linear_head:
        raise UserError(
            f"model {directory}: {type(model).__name__} does more to its logits than a linear head (e.g. "
            "soft-capping or "
            "scaling), which the chunked log-probs of the learner do not reproduce: use another policy model"
        )
    if gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return PolicyModel(model, max_logits, entropy_gradient=entropy_gradient)


@torch.no_grad()
def _has_linear_head(model: Any) -> bool:
    probe = torch.arange(4, device=model.device)[None]
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    expected = model(input_ids=probe, use_cache=False).logits
    hidden = model.base_model(input_ids=probe, use_cache=False).last_hidden_state
    return torch.equal(head(hidden).to(expected.dtype), expected)
