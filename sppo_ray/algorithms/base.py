"""What an algorithm is here: its settings, what it needs to know before it can judge a sample, and its advantages.

    scored samples --needs: sample | group | step--> advantages(samples, settings) --> one advantage a sample (or a token)

Everything else is shared by all algorithms: the loop, the clipped loss (`policy_loss`), the critics' losses (`value_loss`).
No torch here: the configuration imports this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sppo_ray.settings import PositiveInt, Settings

Advantage = float | tuple[float, ...]
"""One number for all tokens of a response, or one number a token."""


@dataclass(frozen=True, slots=True)
class RewardedSample:
    """What an algorithm may know of one sample."""

    group: str  # the same for all samples of one prompt in one step
    reward: float  # shaped; in the reward function's declared range
    num_tokens: int  # of the response
    value: float | None = None  # prompt critic: predicted chance of success, in [0, 1]
    token_values: tuple[float, ...] = ()  # token critic: value before each response token; len == num_tokens
    baseline_reward: float | None = None  # of the greedy response to the same prompt


class KLSettings(Settings):
    """A penalty in the loss for leaving the starting policy. The frozen copy is loaded only when coefficient > 0."""

    coefficient: Annotated[float, Field(ge=0)] = 0.0
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """With d = log pi - log pi_ref of the sampled token: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d
    (joschu.net/blog/kl-approx.html). In a loss, k2's gradient is that of the reverse KL; k1's is zero in expectation."""


class OverlongSettings(Settings):
    """Soft punishment of over-long responses (DAPO, arXiv 2503.14476, eq. 13)."""

    buffer_tokens: PositiveInt
    """The last so many tokens before rollout.max_response_tokens cost more and more."""
    penalty: Annotated[float, Field(gt=0)] = 1.0
    """Subtracted from the reward of a response that fills the buffer; in proportion before. Where a critic is trained by
    binary cross-entropy, the shaped reward stops at 0."""


class DynamicSamplingSettings(Settings):
    """Groups whose rewards are all equal teach nothing: draw further prompts in their place (DAPO, arXiv 2503.14476)."""

    max_rounds: Annotated[int, Field(ge=2)] = 3
    """Times that a step's worth of prompts is drawn at most; the step trains on what it has then."""


class AlgorithmSettings(Settings):
    """Settings that every algorithm shares."""

    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Ratios below 1 - clip_low are clipped."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """Ratios above 1 + clip_high are clipped."""
    ratio: Literal["token", "sequence"] = "token"
    """What is clipped: each token's pi / pi_old, or their geometric mean over the response (GSPO, arXiv 2507.18071)."""
    loss_aggregation: Literal["token-mean", "sequence-mean", "constant"] = "token-mean"
    """token-mean: every token of the minibatch weighs the same. sequence-mean: every response does. constant: the sum over
    tokens divided by samples x rollout.max_response_tokens (Dr.GRPO, arXiv 2503.20783)."""
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Bonus for the mean entropy of the token distributions (nats), in the loss."""
    kl: KLSettings = KLSettings()
    overlong: OverlongSettings | None = None
    old_logprobs: Literal["rollout", "learner"] = "rollout"
    """Where pi_old comes from: the engine's own log-probs, or a forward of the learner before the step's first update, which
    then waits for the step's last sample."""
    importance_cap: Annotated[float, Field(ge=1)] | None = None
    """Truncated importance sampling: each token's loss is weighted by min(pi_learner / pi_engine, cap) at the weights
    before the update. None = off. Needs old_logprobs = learner."""

    @model_validator(mode="after")
    def _cap_needs_learner_logprobs(self) -> AlgorithmSettings:
        if self.importance_cap is not None and self.old_logprobs != "learner":
            raise ValueError(
                "importance_cap corrects engine against learner and needs both log-probs: set old_logprobs to "
                "learner, or importance_cap to null"
            )
        return self


@dataclass(frozen=True, slots=True)
class AlgorithmSpec:
    """One row of `ALGORITHMS`.

    `advantages(samples, settings)` maps samples to one advantage each, in their order. It is called with as much as
    `needs` says: any part of a step (`sample`), whole groups (`group`), or all samples of the step (`step`).
    """

    settings: type[AlgorithmSettings]
    advantages: Callable[[Sequence[RewardedSample], Any], list[Advantage]]
    needs: Literal["sample", "group", "step"]
    critic: Literal["none", "prompt", "token"] = "none"
    greedy_baseline: bool = False  # draw one greedy response a prompt beside the sampled ones
    returns: Callable[[Sequence[RewardedSample], Any], list[tuple[float, ...]]] | None = None  # token critic: its targets
