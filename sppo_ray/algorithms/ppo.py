"""PPO with a token critic and generalised advantage estimation (arXiv 1707.06347, 1506.02438).

V_t is the critic's value before response token t = 0 .. T - 1. The last token earns the reward R
and ends the episode. A truncated response ends in the same way, so there is no value after its
last token.

    delta_t = gamma V_{t+1} - V_t  (t < T - 1),     delta_{T-1} = R - V_{T-1}
    A_t     = sum_k (gamma lam)^k delta_{t+k}
    G_t     = A_t + V_t, the target of the critic; never whitened

`gae` computes the returns first: G_{T-1} = R, G_t = gamma ((1 - lam) V_{t+1} + lam G_{t+1}), and
A_t = G_t - V_t. Each G_t is gamma <= 1 times a mean of values and R. When these are in [0, 1], G_t
is too, so a critic can be trained by binary cross-entropy (`critic_loss: bce`, the ablation of
arXiv 2604.08865). With gamma = lam = 1, G_t = R.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import model_validator

from sppo_ray.algorithms.base import Advantage, AlgorithmSettings, RewardedSample
from sppo_ray.settings import Probability

EPSILON = 1e-8
"""Added to the standard deviation when whitening."""


class PPOSettings(AlgorithmSettings):
    """PPO: a token critic and generalised advantage estimation (arXiv 1707.06347, 1506.02438)."""

    type: Literal["ppo"] = "ppo"
    critic_loss: Literal["mse", "bce"] = "mse"
    """mse: half the squared error of the head's output. bce: binary cross-entropy of its sigmoid;
    needs rewards in [0, 1].
    """
    gamma: Probability = 1.0
    """Discount per token. Below 1, a long correct response has a lower return than a short one."""
    lam: Probability = 1.0
    """Lambda of GAE. With 1 and gamma 1, advantage = reward - value. A smaller lambda gives more
    weight to the critic's later values and less to the reward.
    """
    whiten: bool = True
    """Scale the advantages of a step's tokens to mean 0 and sample standard deviation 1."""

    @property
    def token_critic_loss(self) -> Literal["mse", "bce"]:
        return self.critic_loss

    @model_validator(mode="after")
    def _credit_stays_with_its_token(self) -> PPOSettings:
        if self.ratio == "sequence":
            raise ValueError(
                "ratio sequence gives all tokens of a response one ratio, so that only the sum of their "
                "advantages would be left "
                "of what ppo's critic says of each: set ratio to token, or take an algorithm with one "
                "advantage a response (sppo)"
            )
        return self


def gae(
    rewards_last: Sequence[float], values: Sequence[np.ndarray], gamma: float, lam: float
) -> list[np.ndarray]:
    """Return the generalised advantage estimate of each token, [T] float64 of each response.

    `rewards_last` are the rewards of the responses' last tokens. `values` are the values before
    each token, [T] float64 of each response, T >= 1.
    """
    targets = lambda_returns(rewards_last, values, gamma, lam)
    return [target - value for target, value in zip(targets, values, strict=True)]


def lambda_returns(
    rewards_last: Sequence[float], values: Sequence[np.ndarray], gamma: float, lam: float
) -> list[np.ndarray]:
    """Return G_t for each token, the target of the value before token t, [T] float64 of each
    response.

    Arguments as in `gae`.
    """
    # One vector operation computes G_t of all B responses. They end in the same row of the [T, B]
    # arrays. The numbers above a shorter response are computed too, and not used.
    longest = max(map(len, values), default=0)
    aligned = np.zeros((longest, len(values)))
    for column, row in enumerate(values):
        aligned[longest - len(row) :, column] = row
    targets = np.empty_like(aligned)
    targets[-1:] = rewards_last
    for t in reversed(range(longest - 1)):
        targets[t] = gamma * ((1.0 - lam) * aligned[t + 1] + lam * targets[t + 1])
    return [targets[longest - len(row) :, column].copy() for column, row in enumerate(values)]


def advantages(samples: Sequence[RewardedSample], settings: PPOSettings) -> list[Advantage]:
    """Return one number per response token, for each sample in order.

    With `settings.whiten` they are whitened over all tokens of `samples`.

    Raises:
        ValueError: a sample does not have one value per response token, or has no tokens.
    """
    rows = gae(*_rewards_and_values(samples), settings.gamma, settings.lam)
    return _whitened(rows) if settings.whiten and rows else rows


def returns(samples: Sequence[RewardedSample], settings: PPOSettings) -> list[np.ndarray]:
    """Return the critic's target for each response token, for each sample in order.

    Raises:
        ValueError: as `advantages`.
    """
    return lambda_returns(*_rewards_and_values(samples), settings.gamma, settings.lam)


def _whitened(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    flat = np.concatenate(rows)
    # fsum is exact, so the result does not depend on the order of the samples. It reads an array's
    # buffer one number at a time.
    centred = flat - math.fsum(flat.data) / len(flat)
    squares = math.fsum((centred * centred).data)
    scale = math.sqrt(squares / max(1, len(flat) - 1)) + EPSILON
    return np.split(centred / scale, np.cumsum([len(row) for row in rows[:-1]]))


def _rewards_and_values(samples: Sequence[RewardedSample]) -> tuple[list[float], list[np.ndarray]]:
    for sample in samples:
        if len(sample.token_values) != sample.num_tokens or not sample.num_tokens:
            raise ValueError(
                f"{sample.group}: PPO needs the token critic's value before each of the response's "
                f"{sample.num_tokens} tokens, "
                f"got {len(sample.token_values)}"
            )
    return [sample.reward for sample in samples], [sample.token_values for sample in samples]
