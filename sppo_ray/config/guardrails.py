"""The section `guardrails`: the limit of each detector, and what an alarm does to the run.

The detectors are in `sppo_ray/trainer/detectors.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from sppo_ray.settings import PositiveInt, Probability, Settings

# YAML reads an unquoted off as false.
Action = Annotated[
    Literal["off", "warn", "pause", "stop"], BeforeValidator(lambda given: "off" if given is False else given)
]
Positive = Annotated[float, Field(gt=0)]


class GuardrailSettings(Settings):
    """Alarms on the metrics of each step. A limit of null turns its detector off. "Usual" is the
    median of the last 30 normal steps; comparisons with it start after 8 such steps.
    """

    action: Action = "pause"
    """off: no detector runs. warn: the alarm appears in events, metrics, status.json and REST.
    pause: also wait after the step until the run is resumed or stopped. stop: also end with an
    error, without a checkpoint of the bad state.
    """
    max_pause_s: Positive | None = 3600.0
    """A guardrail pause of this length stops the run, so that an unattended run frees its machines;
    null = no limit.
    """
    skipped_updates: PositiveInt | None = 3
    """Number of updates within 20 steps whose loss or gradient was not finite. Each is skipped and
    counted; this many raise the alarm.
    """
    equal_rewards: PositiveInt | None = 10
    """Number of steps in a row in which all rewards of a step are the same, so that nothing can be
    learned. Only warns.
    """
    all_truncated: PositiveInt | None = 10
    """Number of steps in a row in which every response is cut off at rollout.max_response_tokens.
    Only warns.
    """
    value_collapse: Probability | None = 0.1
    """While rewards vary, the critic's values spread less than this share of their usual spread,
    and their mean is more than 0.15 from the mean reward. Also raised when all values are the same
    and either at 0 or 1, or jumping far from the mean reward.
    """
    critic_blind: Positive | None = 1e-3
    """While rewards vary, the critic's values spread less than this (standard deviation) for 20
    steps in a row: it has learned the mean reward and nothing about prompts. Only warns.
    """
    negative_advantages: Positive | None = 0.2
    """The mean advantage of a step is below minus this. Only warns."""
    entropy_collapse: Probability | None = 0.1
    """The policy's entropy is below this share of the usual one while the reward does not rise, or
    below a tenth of this share in any case.
    """
    truncation_rise: Probability | None = 0.3
    """The share of truncated responses exceeds the usual share by more than this."""
    reward_error_rate: Probability | None = 0.05
    """More than this share of a step's responses could not be scored. reward.max_error_rate ends
    the run at once.
    """
    over_optimisation: Positive | None = 0.1
    """The watched parts of the reward (those of weight 0 in a sum) are on average this much below
    their peak (a median of 5 steps), while the reward is not below the usual one. Without such
    parts nothing is checked.
    """
    clip_fraction_rise: Probability | None = 0.1
    """The share of clipped tokens exceeds the usual share by more than this."""
    ratio_drift: Positive | None = 0.2
    """The mean importance ratio differs from 1 by more than this."""
    effective_sample_size: Probability | None = 0.5
    """The share of a minibatch's tokens that their ratios pi / pi_engine are worth,
    (sum r)^2 / (n sum r^2), is below this.
    """
    kl: Positive | None = 0.1
    """approx_kl_k3 between the sampling policy and the learner is above this (nats a token)."""
    mismatch: Positive | None = 0.1
    """Mean |engine - learner| of the log-probs of a step's first minibatch is above this (nats);
    in synchronous runs also when
    it is above 1e-3 and a hundred times the usual one.
    """
