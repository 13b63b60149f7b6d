"""The section `guardrails`: from which figure on a step counts as odd, and what an alarm does to the run.

What each one looks at is in `sppo_ray/trainer/detectors.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sppo_ray.settings import PositiveInt, Probability, Settings

Action = Literal["off", "warn", "pause", "stop"]
Positive = Annotated[float, Field(gt=0)]


class GuardrailSettings(Settings):
    """Alarms over the figures of each step. A limit of null turns its detector off; "usual" is the median of the last 30 steps
    that were not odd, and nothing is compared with it before there are 8."""

    action: Action = "pause"
    """warn: say so in events, metrics, status.json and over REST. pause: and wait after the step, until somebody resumes or stops
    the run. stop: and end with an error, without a checkpoint of the state that went wrong. off: look at nothing."""
    max_pause_s: Positive | None = 3600.0
    """A pause of a guardrail's that nobody ends for so long stops the run, so that it does not hold its machines for ever; null =
    no limit."""
    skipped_updates: PositiveInt | None = 3
    """Updates whose loss or gradient was not finite, within 20 steps. Each is skipped and counted; so many raise the alarm."""
    value_collapse: Probability | None = 0.1
    """The critic's values of a step spread less than this share of their usual spread, or are one and the same value at 0 or 1 or
    leaping about far from the mean reward, while rewards vary."""
    critic_blind: Positive | None = 1e-3
    """The critic's values spread less than this (standard deviation) for 20 steps on end, while rewards vary: it has learned the
    mean reward and nothing about prompts. Only ever warns."""
    entropy_collapse: Probability | None = 0.1
    """The policy's entropy is below this share of the usual one while the reward does not rise, or below a tenth of this
    share whatever the reward does."""
    truncation_rise: Probability | None = 0.3
    """The share of responses that were cut is above the usual one by more than this."""
    reward_error_rate: Probability | None = 0.05
    """More than this share of a step's responses could not be scored. reward.max_error_rate ends the run at once."""
    clip_fraction_rise: Probability | None = 0.1
    """The share of clipped tokens is above the usual one by more than this."""
    ratio_drift: Positive | None = 0.2
    """The mean importance ratio is off 1 by more than this."""
    kl: Positive | None = 0.1
    """approx_kl_k3 between the sampling policy and the learner is above this (nats a token)."""
    mismatch: Positive | None = 0.1
    """Mean |engine - learner| of the log-probs of a step's first minibatch is above this (nats); in synchronous runs also when
    it is above 1e-3 and a hundred times the usual one."""
