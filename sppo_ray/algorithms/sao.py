"""SAO: one response per prompt, a token critic and a two-sided mask (arXiv 2607.07508).

    A_t = GAE(gamma, lam_l)         lam_l = 1 - 1 / (alpha l),  l = response tokens, at least 0
    G_t = lambda-return(critic_lam), the target of the critic; with 1 the reward itself
    L   = - sum_t w_t f(r_t) A_t log pi_t,  r = pi / pi_engine,  f(r) = r if low < r < high else 0

The mask is the loss form `dis`, detached (`loss_forms`). The critic's further settings are
`critic.updates_per_minibatch` (published: 2), `critic.warmup_steps` (10) and
`critic.frozen_parameters` (attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from sppo_ray.algorithms.base import Advantage, RewardedSample, TokenCriticSettings
from sppo_ray.algorithms.gae import gae, lambda_returns, length_adaptive_lambda, rewards_and_values, whitened
from sppo_ray.algorithms.loss_settings import DISLoss, LossForm
from sppo_ray.settings import Probability


class SAOSettings(TokenCriticSettings):
    """SAO: a token critic, length-adaptive GAE and a two-sided mask of the ratio to the engine
    (arXiv 2607.07508).
    """

    type: Literal["sao"] = "sao"
    loss: LossForm | None = DISLoss()
    alpha: Annotated[float, Field(gt=0)] = 1.5
    """Lambda of the advantages is 1 - 1 / (alpha x response tokens), and at least 0."""
    critic_lam: Probability = 1.0
    """Lambda of the critic's targets. With 1 and gamma 1 the target is the reward."""
    whiten: bool = False
    """Scale the advantages of a step's tokens to mean 0 and sample standard deviation 1."""


def advantages(samples: Sequence[RewardedSample], settings: SAOSettings) -> list[Advantage]:
    """Return one number per response token, for each sample in order.

    Raises:
        ValueError: a sample does not have one value per response token, or has no tokens.
    """
    lambdas = [length_adaptive_lambda(settings.alpha, max(1, sample.num_tokens)) for sample in samples]
    rows = gae(*rewards_and_values(samples, "SAO"), settings.gamma, lambdas)
    return whitened(rows) if settings.whiten and rows else rows


def returns(samples: Sequence[RewardedSample], settings: SAOSettings) -> list[np.ndarray]:
    """Return the critic's target for each response token, for each sample in order.

    Raises:
        ValueError: as `advantages`.
    """
    return lambda_returns(*rewards_and_values(samples, "SAO"), settings.gamma, settings.critic_lam)
