"""PPO with a token critic and generalised advantage estimation (arXiv 1707.06347, 1506.02438).

    A_t = GAE(gamma, lam)               whitened over the step
    G_t = lambda-return(critic_lam)     the target of the critic; never whitened

`gae` has the formulas. With `critic_loss: bce` the critic is trained by binary cross-entropy (the
ablation of arXiv 2604.08865). With `critic_lam` 1 and `lam` below 1 the lambdas are decoupled
(VC-PPO, arXiv 2503.01491): the critic learns the reward itself, the policy's advantages lean on the
critic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from sppo_ray.algorithms.base import Advantage, RewardedSample, TokenCriticSettings
from sppo_ray.algorithms.gae import gae, lambda_returns, rewards_and_values, whitened
from sppo_ray.settings import Probability


class PPOSettings(TokenCriticSettings):
    """PPO: a token critic and generalised advantage estimation (arXiv 1707.06347, 1506.02438)."""

    type: Literal["ppo"] = "ppo"
    lam: Probability = 1.0
    """Lambda of GAE. With 1 and gamma 1, advantage = reward - value. A smaller lambda gives more
    weight to the critic's later values and less to the reward.
    """
    critic_lam: Probability | None = None
    """Lambda of the critic's targets; null = lam. With 1 and gamma 1 the target is the reward
    (VC-PPO, arXiv 2503.01491).
    """
    whiten: bool = True
    """Scale the advantages of a step's tokens to mean 0 and sample standard deviation 1."""


def advantages(samples: Sequence[RewardedSample], settings: PPOSettings) -> list[Advantage]:
    """Return one number per response token, for each sample in order.

    With `settings.whiten` they are whitened over all tokens of `samples`.

    Raises:
        ValueError: a sample does not have one value per response token, or has no tokens.
    """
    rows = gae(*rewards_and_values(samples, "PPO"), settings.gamma, settings.lam)
    return whitened(rows) if settings.whiten and rows else rows


def returns(samples: Sequence[RewardedSample], settings: PPOSettings) -> list[np.ndarray]:
    """Return the critic's target for each response token, for each sample in order.

    Raises:
        ValueError: as `advantages`.
    """
    lam = settings.lam if settings.critic_lam is None else settings.critic_lam
    return lambda_returns(*rewards_and_values(samples, "PPO"), settings.gamma, lam)
