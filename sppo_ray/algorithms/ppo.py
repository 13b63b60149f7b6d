"""PPO with a critic on every token and generalised advantage estimation (arXiv 1707.06347, 1506.02438).

The reward R comes with a response's last token and nothing follows it: a truncated response is terminal too, so no value
beyond its end is ever asked for. V_t is the critic's value before response token t = 0 .. T - 1.

    delta_t = V_{t+1} gamma - V_t  (t < T - 1),     delta_{T-1} = R - V_{T-1}
    A_t     = sum_k (gamma lam)^k delta_{t+k}
    return  = A_t + V_t, what the critic is fitted to; never whitened

`gae` computes the same thing through the returns, G_{T-1} = R, G_t = gamma ((1 - lam) V_{t+1} + lam G_{t+1}), A_t = G_t - V_t.
That form shows why a critic may be fitted by binary cross-entropy (`critic_loss: bce`, the ablation of arXiv 2604.08865): each
G_t is gamma <= 1 times a mean of values and R, which all lie in [0, 1], so G_t does too. With gamma = lam = 1 it is R exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, RewardedSample
from sppo_ray.settings import Probability

EPSILON = 1e-8
"""Added to the standard deviation when whitening."""


class PPOSettings(AlgorithmSettings):
    """PPO: a critic reads prompt and response and values every token; generalised advantage estimates (arXiv 1707.06347)."""

    type: Literal["ppo"] = "ppo"
    critic_loss: Literal["mse", "bce"] = "mse"
    """mse: half the squared error of the head's output. bce: binary cross-entropy of its sigmoid; needs rewards in [0, 1]."""
    gamma: Probability = 1.0
    """Discount a token. Below 1, a long correct response is worth less than a short one."""
    lam: Probability = 1.0
    """GAE's lambda. 1 = reward minus value; smaller trusts the critic's later values more than the reward."""
    whiten: bool = True
    """Shift and scale the advantages of a step's tokens to mean 0 and sample standard deviation 1."""

    @model_validator(mode="after")
    def _credit_stays_with_its_token(self) -> PPOSettings:
        if self.ratio == "sequence":
            raise ValueError(
                "ratio sequence gives all tokens of a response one ratio, so that only the sum of their advantages would be left "
                "of what ppo's critic says of each: set ratio to token, or take an algorithm with one advantage a response (sppo)"
            )
        return self


def gae(reward_last: float, values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """Advantages of one response's tokens; `reward_last` comes with its last token, `values` are those before each token."""
    return [target - value for target, value in zip(lambda_returns(reward_last, values, gamma, lam), values, strict=True)]


def lambda_returns(reward_last: float, values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """G_t of one response's tokens: what the value before token t is to predict."""
    targets = [reward_last]
    for next_value in reversed(values[1:]):
        targets.append(gamma * ((1.0 - lam) * next_value + lam * targets[-1]))
    return targets[::-1]


def advantages(samples: Sequence[RewardedSample], settings: PPOSettings) -> list[Advantage]:
    """One number a response token, whitened over all tokens of `samples` if the settings say so.

    Raises:
        ValueError: a sample without a value for each of its tokens.
    """
    rows = [gae(sample.reward, _values_of(sample), settings.gamma, settings.lam) for sample in samples]
    return [tuple(row) for row in (_whitened(rows) if settings.whiten else rows)]


def returns(samples: Sequence[RewardedSample], settings: PPOSettings) -> list[tuple[float, ...]]:
    """The critic's target at each response token."""
    return [tuple(lambda_returns(sample.reward, _values_of(sample), settings.gamma, settings.lam)) for sample in samples]


def _whitened(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    count = sum(len(row) for row in rows)
    # fsum is exact, so the result does not depend on the order in which the samples came.
    mean = math.fsum(value for row in rows for value in row) / max(1, count)
    squares = math.fsum((value - mean) ** 2 for row in rows for value in row)
    scale = math.sqrt(squares / max(1, count - 1)) + EPSILON
    return [[(value - mean) / scale for value in row] for row in rows]


def _values_of(sample: RewardedSample) -> tuple[float, ...]:
    if len(sample.token_values) != sample.num_tokens or not sample.num_tokens:
        raise ValueError(
            f"{sample.group}: PPO needs the token critic's value before each of the response's {sample.num_tokens} tokens, "
            f"got {len(sample.token_values)}"
        )
    return sample.token_values
