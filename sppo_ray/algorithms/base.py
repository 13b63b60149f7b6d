"""Defines an algorithm: its settings, the samples that it needs together, and its advantages.

    scored samples --needs: sample | group | step--> advantages(samples, settings)
        --> one advantage per sample, or one per token

All algorithms share the loop, the clipped loss (`policy_loss`) and the critic losses
(`value_loss`). This module does not import torch, because the configuration imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from sppo_ray.algorithms.loss_settings import ImportanceMaskSettings, LossForm
from sppo_ray.settings import PositiveInt, Probability, Settings
from sppo_ray.types import NO_TOKENS, Comparable, PromptHistory

Advantage = float | np.ndarray
"""One number for all tokens of a response, or one number per token: [num_tokens] float64."""


@dataclass(frozen=True, slots=True, eq=False)
class RewardedSample(Comparable):
    """The input of an algorithm for one sample."""

    group: str  # equal for all samples of one prompt in one step
    reward: float  # shaped; in the reward function's declared range
    num_tokens: int  # tokens of the response
    value: float | None = None  # prompt critic: predicted probability of success, in [0, 1]
    # token critic: value before each response token, [num_tokens] float64; else empty
    token_values: np.ndarray = field(default_factory=lambda: NO_TOKENS)
    baseline_reward: float | None = None  # reward of the greedy response to the same prompt
    # tracker: the prompt's own past rewards, without this one
    history: PromptHistory | None = None


class KLSettings(Settings):
    """KL penalty against the starting policy, whose frozen copy is loaded if coefficient > 0."""

    coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the penalty in the loss; 0 = none."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """With d = log pi - log pi_ref of the sampled token: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d
    (joschu.net/blog/kl-approx.html). In a loss, k2's gradient is that of the reverse KL; k1's is
    zero in expectation.
    """


class OverlongSettings(Settings):
    """Soft penalty for overlong responses (DAPO, arXiv 2503.14476, eq. 13)."""

    buffer_tokens: PositiveInt
    """Number of tokens before rollout.max_response_tokens over which the penalty grows linearly."""
    penalty: Annotated[float, Field(gt=0)] = 1.0
    """Penalty of a response of rollout.max_response_tokens tokens. With a critic trained by binary
    cross-entropy, the shaped reward is at least 0.
    """


class DynamicSamplingSettings(Settings):
    """Replace groups whose rewards are all equal by further prompts (DAPO, arXiv 2503.14476).

    The advantages of such a group are all 0, so it adds nothing to the gradient.
    """

    max_rounds: Annotated[int, Field(ge=2)] = 3
    """Maximum number of draws of prompts in a step. After the last draw the step trains on the
    groups that it has.
    """


class TrackerSettings(Settings):
    """A success rate of each prompt from its own past rewards (SPO, arXiv 2509.13232)."""

    rho: Annotated[float, Field(gt=0, lt=1)] = 0.875
    """Weight of the past when a reward comes in. The rate is worth at most 1 / (1 - rho)
    rewards.
    """


class AlgorithmSettings(Settings):
    """Settings that all algorithms share."""

    loss: LossForm | None = None
    """Form of the policy loss; null = PPO's clip, with clip_low, clip_high and ratio. The forms
    weight the gradient of each token and have no clip range.
    """
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Ratios below 1 - clip_low are clipped. Only with loss null."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """Ratios above 1 + clip_high are clipped. Only with loss null."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Ratios above it are clipped where the advantage is negative, too, so that one token cannot
    dominate a minibatch (dual-clip PPO, arXiv 1912.09729; verl's clip_ratio_c, TRL's delta). null =
    off. Only with loss null.
    """
    ratio: Literal["token", "sequence"] = "token"
    """The ratio that is clipped: pi / pi_old of each token, or its geometric mean over the response
    (GSPO, arXiv 2507.18071).
    """
    loss_aggregation: Literal["token-mean", "sequence-mean", "constant"] = "token-mean"
    """token-mean: every token of the minibatch has the same weight. sequence-mean: every response
    has the same weight. constant: the sum over tokens is divided by samples x
    rollout.max_response_tokens (Dr.GRPO, arXiv 2503.20783).
    """
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the entropy bonus: the mean entropy of the token distributions in nats."""
    kl: KLSettings = KLSettings()
    overlong: OverlongSettings | None = None
    old_logprobs: Literal["rollout", "learner"] = "rollout"
    """Source of pi_old: the engine's log-probs, or a forward pass of the learner before the step's
    first update. With learner, the first update waits for the step's last sample.
    """
    importance_cap: Annotated[float, Field(ge=1)] | None = None
    """Cap of truncated importance sampling: the loss of each token is multiplied by
    min(pi_learner / pi_engine, cap), with the weights before the update. None = off. Needs
    old_logprobs = learner.
    """
    importance_mask: ImportanceMaskSettings | None = None
    """Multiplies the loss of each token by pi_learner / pi_engine, with the weights before the
    update, and by 0 where that is outside [low, high]. null = off. Needs old_logprobs = learner.
    """

    @property
    def sampling_rounds(self) -> int:
        """Maximum number of draws of prompts in a step; above 1 with dynamic sampling."""
        return 1

    @property
    def token_critic_loss(self) -> Literal["mse", "bce"] | None:
        """Loss of the token critic; None without a token critic."""
        return None

    @property
    def tracked(self) -> TrackerSettings | None:
        """Settings of the tracker of prompts; None without one."""
        return None

    @property
    def centers(self) -> bool:
        """Whether the mean of the step's advantages is subtracted, so that they wait for all its
        samples.
        """
        return False

    @property
    def corrects_engine(self) -> bool:
        """Whether the loss has importance weights of the learner against the engine."""
        return self.importance_cap is not None or self.importance_mask is not None

    @model_validator(mode="after")
    def _correction_needs_learner_logprobs(self) -> AlgorithmSettings:
        if self.corrects_engine and self.old_logprobs != "learner":
            name = "importance_mask" if self.importance_cap is None else "importance_cap"
            raise ValueError(
                f"{name} corrects engine against learner and needs both log-probs: set old_logprobs to "
                f"learner, or {name} to null"
            )
        return self

    @model_validator(mode="after")
    def _dual_clip_is_the_wider(self) -> AlgorithmSettings:
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise ValueError(
                f"dual_clip {self.dual_clip} lies within the clip range, which ends at 1 + clip_high = "
                f"{1 + self.clip_high:g}: raise it, e.g. to 3, or set it to null"
            )
        return self

    @model_validator(mode="after")
    def _loss_form_alone(self) -> AlgorithmSettings:
        if self.loss is None:
            return self
        if self.ratio == "sequence":
            raise ValueError(
                f"ratio sequence belongs to PPO's clip, and loss {self.loss.type} weights each token by its "
                "own ratio: set ratio to token, or loss to null"
            )
        for name in ("clip_low", "clip_high", "dual_clip"):
            usual = type(self).model_fields[name].default
            if getattr(self, name) != usual:  # a recipe may state the usual value
                raise ValueError(
                    f"{name} belongs to PPO's clip, and loss {self.loss.type} has bounds of its own "
                    f"(settings of algorithm.loss): set {name} to {'null' if usual is None else usual}, or "
                    "loss to null"
                )
        if self.corrects_engine and self.loss.type != "cispo":
            raise ValueError(
                f"loss {self.loss.type} already weights each token by pi / pi_engine, and importance_cap and "
                "importance_mask would correct the engine twice: set both to null, or loss to cispo"
            )
        return self


class TokenCriticSettings(AlgorithmSettings):
    """Settings that algorithms with a token critic share."""

    critic_loss: Literal["mse", "bce"] = "mse"
    """mse: half the squared error of the head's output. bce: binary cross-entropy of its sigmoid;
    needs rewards in [0, 1].
    """
    gamma: Probability = 1.0
    """Discount per token. Below 1, a long correct response has a lower return than a short one."""

    @property
    def token_critic_loss(self) -> Literal["mse", "bce"]:
        return self.critic_loss

    @model_validator(mode="after")
    def _credit_stays_with_its_token(self) -> TokenCriticSettings:
        if self.ratio == "sequence":
            raise ValueError(
                "ratio sequence gives all tokens of a response one ratio, so that only the sum of their "
                "advantages would be left "
                "of what the token critic says of each: set ratio to token, or take an algorithm with one "
                "advantage a response (sppo)"
            )
        return self


@dataclass(frozen=True, slots=True)
class AlgorithmSpec:
    """One row of `ALGORITHMS`.

    `advantages(samples, settings)` returns one advantage per sample, in the order of the samples.
    `needs` defines the samples of a call: any samples of a step (`sample`), whole groups (`group`),
    or all samples of a step (`step`).
    """

    settings: type[AlgorithmSettings]
    advantages: Callable[[Sequence[RewardedSample], Any], list[Advantage]]
    needs: Literal["sample", "group", "step"]
    critic: Literal["none", "prompt", "token"] = "none"
    greedy_baseline: bool = False  # also generate one greedy response per prompt
    # targets of the token critic, [num_tokens] float64 of each sample
    returns: Callable[[Sequence[RewardedSample], Any], list[np.ndarray]] | None = None
