"""PPO's token critic and the policy loss of every algorithm, in one process, one sample at a time.

The reference for the parity tests. It does not import `sppo_ray.algorithms`, `sppo_ray.models` or
`actors`, and has no padding. Suffixes of tensor names: R response tokens, V vocabulary, D hidden
size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import AutoModel, PreTrainedModel

from tests.reference_sppo import TokenIds, descend


class TokenCritic(nn.Module):
    """A causal LM's trunk with one number a position. Fresh head: 0 everywhere."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        self.trunk = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
        self.head = nn.Linear(self.trunk.config.hidden_size, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, prompt_ids: TokenIds, response_ids: TokenIds) -> Tensor:
        """[R]: entry t has read the prompt and the response's tokens before t."""
        hidden_TD = self.trunk(
            input_ids=torch.tensor([[*prompt_ids, *response_ids]]), use_cache=False
        ).last_hidden_state[0]
        return torch.stack(
            [self.head(hidden_TD[len(prompt_ids) + t - 1])[0] for t in range(len(response_ids))]
        )


def update_token_critic(
    critic: TokenCritic,
    optimizer: Optimizer,
    samples: Sequence[tuple[TokenIds, TokenIds, Sequence[float]]],
    loss: str,
) -> float:
    """One optimizer step on (prompt, response, returns); gives the loss before it, a mean over all
    response tokens.
    """
    total, tokens = torch.zeros(()), 0
    for prompt_ids, response_ids, returns in samples:
        for value, target in zip(critic(prompt_ids, response_ids), returns, strict=True):
            if loss == "mse":
                total = total + (value - target) ** 2 / 2
            else:
                chance = value.sigmoid()
                total = total - target * chance.log() - (1 - target) * (1 - chance).log()
            tokens += 1
    return descend(critic, optimizer, total / tokens)


def logprobs_and_entropies(
    model: PreTrainedModel, prompt_ids: TokenIds, response_ids: TokenIds, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probs of the response's tokens and entropies of their distributions (nats), both [R] and
    with gradient.
    """
    logits_TV = (
        model(input_ids=torch.tensor([[*prompt_ids, *response_ids]]), use_cache=False).logits[0] / temperature
    )
    rows_RV = logits_TV[len(prompt_ids) - 1 : -1]
    distribution = torch.distributions.Categorical(logits=rows_RV)
    return distribution.log_prob(torch.tensor(response_ids)), distribution.entropy()
