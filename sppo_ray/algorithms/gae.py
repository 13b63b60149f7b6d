"""Generalised advantage estimation over the tokens of a response (arXiv 1506.02438).

V_t is the critic's value before response token t = 0 .. T - 1. The last token earns the reward R
and ends the episode. A truncated response ends in the same way, so there is no value after its
last token.

    delta_t = gamma V_{t+1} - V_t  (t < T - 1),     delta_{T-1} = R - V_{T-1}
    A_t     = sum_k (gamma lam)^k delta_{t+k}
    G_t     = A_t + V_t, the target of the critic; never whitened

The returns are computed first: G_{T-1} = R, G_t = gamma ((1 - lam) V_{t+1} + lam G_{t+1}), and
A_t = G_t - V_t. Each G_t is gamma <= 1 times a mean of values and R. When these are in [0, 1], G_t
is too, so a critic can be trained by binary cross-entropy. With gamma = lam = 1, G_t = R.

Advantages and targets may have different lambdas (VC-PPO, arXiv 2503.01491), and lambda may depend
on the length of the response (VAPO, arXiv 2504.05118).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sppo_ray.algorithms.base import RewardedSample

EPSILON = 1e-8
"""Added to the standard deviation when whitening."""

Lambda = float | Sequence[float]
"""One lambda for all responses, or one for each."""


def gae(
    rewards_last: Sequence[float], values: Sequence[np.ndarray], gamma: float, lam: Lambda
) -> list[np.ndarray]:
    """Return the generalised advantage estimate of each token, [T] float64 of each response.

    `rewards_last` are the rewards of the responses' last tokens. `values` are the values before
    each token, [T] float64 of each response, T >= 1.
    """
    targets = lambda_returns(rewards_last, values, gamma, lam)
    return [target - value for target, value in zip(targets, values, strict=True)]


def lambda_returns(
    rewards_last: Sequence[float], values: Sequence[np.ndarray], gamma: float, lam: Lambda
) -> list[np.ndarray]:
    """Return G_t for each token, the target of the value before token t, [T] float64 of each
    response.

    Arguments as in `gae`.
    """
    # One vector operation computes G_t of all B responses. They end in the same row of the [T, B]
    # arrays. The numbers above a shorter response are computed too, and not used.
    own = np.asarray(lam, dtype=np.float64)
    longest = max(map(len, values), default=0)
    aligned = np.zeros((longest, len(values)))
    for column, row in enumerate(values):
        aligned[longest - len(row) :, column] = row
    targets = np.empty_like(aligned)
    targets[-1:] = rewards_last
    for t in reversed(range(longest - 1)):
        targets[t] = gamma * ((1.0 - own) * aligned[t + 1] + own * targets[t + 1])
    return [targets[longest - len(row) :, column].copy() for column, row in enumerate(values)]


def length_adaptive_lambda(alpha: float, num_tokens: int) -> float:
    """Return 1 - 1 / (alpha * num_tokens), and 0 for responses shorter than 1 / alpha tokens (VAPO,
    arXiv 2504.05118, eq. 10).

    With it the reward reaches the first token with weight lambda^(num_tokens - 1), which tends to
    exp(-1 / alpha) for long responses, whatever their length.
    """
    return max(0.0, 1.0 - 1.0 / (alpha * num_tokens))


def whitened(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Scale the numbers of all rows to mean 0 and sample standard deviation 1."""
    flat = np.concatenate(rows)
    # fsum is exact, so the result does not depend on the order of the samples. It reads an array's
    # buffer one number at a time.
    centred = flat - math.fsum(flat.data) / len(flat)
    squares = math.fsum((centred * centred).data)
    scale = math.sqrt(squares / max(1, len(flat) - 1)) + EPSILON
    return np.split(centred / scale, np.cumsum([len(row) for row in rows[:-1]]))


def rewards_and_values(
    samples: Sequence[RewardedSample], name: str
) -> tuple[list[float], list[np.ndarray]]:
    """Return the rewards and the token values of `samples`. `name` is the algorithm's, for the
    message.

    Raises:
        ValueError: a sample does not have one value per response token, or has no tokens.
    """
    for sample in samples:
        if len(sample.token_values) != sample.num_tokens or not sample.num_tokens:
            raise ValueError(
                f"{sample.group}: {name} needs the token critic's value before each of the response's "
                f"{sample.num_tokens} tokens, "
                f"got {len(sample.token_values)}"
            )
    return [sample.reward for sample in samples], [sample.token_values for sample in samples]
