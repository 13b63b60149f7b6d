"""Detectors of failing training, each a pure function of a step's metrics.

A detector reads metrics by their names in metrics.jsonl. It compares them with an absolute limit
where one exists (a ratio is near 1, a gradient is finite), else with the medians of this run. Each
detector has a meaning and a remedy for its message.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Figures = Mapping[str, float]

KNOWN_AFTER = 8  # normal steps needed before the medians are used
MIN_REWARD_STD = 0.1  # minimum reward/std of varying rewards: a solve rate of 1 % to 99 %
MIN_VALUE_STD = 0.01  # minimum value/std of a critic that distinguishes prompts
SATURATED = 0.02  # a mean value this close to 0 or 1 is saturated
MEAN_GAP = 0.15  # |mean value - mean reward| of a failed critic: 2.5 standard errors of 32 samples
# The same for a critic that never distinguished prompts, and its minimum change in one step.
LARGE_MEAN_GAP, VALUE_JUMP = 0.3, 0.1
PEAK_STEPS = 5
REWARD_GAIN = 0.05  # when the mean reward rises by this much, entropy may fall
MISMATCH_RISE = (
    1e-3,
    100.0,
)  # nats, and factor to the median; float32 rounding is 1e-7 and varies by a factor of 4


class Anomaly(NamedTuple):
    """A description of an anomaly in a step, and its weight."""

    seen: str
    weight: int = 1


class Baseline:
    """Medians of metrics over the latest normal steps. `previous` is the previous step, or {}."""

    def __init__(self, rows: Sequence[Figures], previous: Figures) -> None:
        self._rows = rows
        self.previous = previous

    @property
    def is_known(self) -> bool:
        return len(self._rows) >= KNOWN_AFTER

    def __call__(self, name: str) -> float:
        return statistics.median(row[name] for row in self._rows)

    def peak(self, name: str) -> float:
        """Return the highest median of PEAK_STEPS successive normal steps."""
        figures = [row[name] for row in self._rows]
        starts = range(max(1, len(figures) - PEAK_STEPS + 1))
        return max(statistics.median(figures[start : start + PEAK_STEPS]) for start in starts)


Judge = Callable[[Figures, Baseline, float], Anomaly | None]


@dataclass(frozen=True, slots=True)
class Detector:
    """`judge(figures, usual, limit)` returns the anomaly of a step, or None.

    Anomalies with a total weight of `needed` in the last `window` steps raise the alarm.
    """

    judge: Judge
    # metrics that must be present and finite, else the step is skipped
    watches: tuple[str, ...]
    meaning: str
    remedy: str
    window: int | None = 6  # None: the limit itself
    needed: int | None = 3  # None: the limit itself
    only_warns: bool = False


def skipped_updates(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    counts = [figures.get(f"{role}/skipped", 0.0) for role in ("policy", "critic")]
    skipped = sum(int(count) for count in counts if math.isfinite(count))
    names = [f"{role}/{name}" for role in ("policy", "critic") for name in ("loss", "grad_norm")]
    nonfinite = [name for name in names if not math.isfinite(figures.get(name, 0.0))]
    if not skipped and not nonfinite:
        return None
    what = f"{' and '.join(nonfinite)} not finite" if nonfinite else "a gradient was not finite"
    return Anomaly(f"{what}, {skipped} updates of the step skipped", max(skipped, 1))


def equal_rewards(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    if figures["reward/std"] > 0.0:
        return None
    cut = " and every response was cut off" if figures["response/truncation_rate"] == 1.0 else ""
    return Anomaly(f"all rewards of a step are {figures['reward/mean']:.3g}{cut}")


def all_truncated(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    if figures["response/truncation_rate"] < 1.0:
        return None
    return Anomaly("every response of a step was cut off")


def value_collapse(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    spread, mean, reward = figures["value/std"], figures["value/mean"], figures["reward/mean"]
    if figures["reward/std"] < MIN_REWARD_STD or not usual.is_known:
        return None
    before = usual("value/std")
    # Equal values near the mean reward are correct if the policy solves all prompts alike.
    if before >= MIN_VALUE_STD and spread < limit * before and abs(mean - reward) > MEAN_GAP:
        return Anomaly(f"value/std is {spread:.2g}, usually {before:.2g}")
    # A new critic is constant too, at 0.5, or at 0 for a few steps when trained by squared error.
    # A slow critic moves towards the mean reward. A failed critic is saturated or jumps.
    saturated = not SATURATED < mean < 1.0 - SATURATED
    far_from_reward = abs(mean - reward) > LARGE_MEAN_GAP
    jumped = far_from_reward and abs(mean - usual.previous["value/mean"]) > VALUE_JUMP
    if spread < MIN_VALUE_STD and (saturated or jumped):
        return Anomaly(
            f"the values of all prompts are {mean:.3g} (value/std {spread:.2g}) at a mean reward of "
            f"{reward:.2f}"
        )
    return None


def critic_blind(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    if figures["reward/std"] < MIN_REWARD_STD or figures["value/std"] >= limit:
        return None
    return Anomaly(f"value/std is {figures['value/std']:.2g} around {figures['value/mean']:.2f}")


def negative_advantages(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    now = figures["advantage/mean"]
    return Anomaly(f"advantage/mean is {now:.2g}") if now < -limit else None


def entropy_collapse(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    if not usual.is_known:
        return None
    now, before = figures["policy/entropy"], usual("policy/entropy")
    gain = figures["reward/mean"] - usual("reward/mean")
    share = limit if gain < REWARD_GAIN else limit / 10
    if now >= share * before:
        return None
    return Anomaly(
        f"policy/entropy is {now:.2g}, usually {before:.2g}, and the mean reward changed by {gain:+.2f}"
    )


def truncation_rise(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    return _risen("response/truncation_rate", figures["response/truncation_rate"], usual, limit)


def reward_error_rate(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    errors, scored = figures["reward/errors"], figures["samples/count"]
    if errors <= limit * (errors + scored):
        return None
    return Anomaly(f"{errors:.0f} of {errors + scored:.0f} responses could not be scored")


def over_optimisation(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    """The reward that is trained rises and a second opinion falls (arXiv 2210.10760)."""
    if not usual.is_known or figures["reward/mean"] < usual("reward/mean"):
        return None
    now, before = figures["reward/watched"], usual.peak("reward/watched")
    if now > before - limit:
        return None
    return Anomaly(
        f"reward/watched is {now:.3g} after a peak of {before:.3g}, while reward/mean is "
        f"{figures['reward/mean']:.3g}, usually {usual('reward/mean'):.3g}"
    )


def clip_fraction_rise(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    if not usual.is_known:
        return None
    names = "policy/clip_fraction_low", "policy/clip_fraction_high"
    now, before = sum(figures[name] for name in names), sum(usual(name) for name in names)
    return (
        Anomaly(f"{now:.1%} of the tokens were clipped, usually {before:.1%}")
        if now > before + limit
        else None
    )


def ratio_drift(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    mean, weight = figures["policy/ratio_mean"], figures.get("policy/importance_mean", 1.0)
    if abs(mean - 1.0) > limit:
        return Anomaly(f"policy/ratio_mean is {mean:.3g}")
    return Anomaly(f"policy/importance_mean is {weight:.3g}") if weight < 1.0 - limit else None


def kl(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    now = figures["policy/approx_kl_k3"]
    return Anomaly(f"policy/approx_kl_k3 is {now:.2g} nats a token") if now > limit else None


def effective_sample_size(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    now = figures["policy/effective_sample_size"]
    masked = figures.get("policy/masked_fraction", 0.0)
    if now >= limit:
        return None
    return Anomaly(f"policy/effective_sample_size is {now:.2g} with {masked:.1%} of the tokens masked")


def mismatch(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    now = figures["mismatch/logprob_difference_mean"]
    return Anomaly(f"mismatch/logprob_difference_mean is {now:.2g} nats") if now > limit else None


def synchronous_mismatch(figures: Figures, usual: Baseline, limit: float) -> Anomaly | None:
    """Detector of mismatch for synchronous runs.

    Without staleness, engine and learner differ only by rounding, which does not grow by a factor
    of 100.
    """
    now, (floor, factor) = figures["mismatch/logprob_difference_mean"], MISMATCH_RISE
    if usual.is_known and now > max(floor, factor * usual("mismatch/logprob_difference_mean")):
        before = usual("mismatch/logprob_difference_mean")
        return Anomaly(f"mismatch/logprob_difference_mean is {now:.2g} nats, usually {before:.2g}")
    return mismatch(figures, usual, limit)


def _risen(name: str, now: float, usual: Baseline, limit: float) -> Anomaly | None:
    if not usual.is_known or now <= usual(name) + limit:
        return None
    return Anomaly(f"{name} is {now:.2f}, usually {usual(name):.2f}")


_VALUES = ("value/std", "value/mean", "reward/std", "reward/mean")

DETECTORS: dict[str, Detector] = {
    "skipped_updates": Detector(
        skipped_updates,
        (),
        meaning="a learning rate that is too high, an overflow in bfloat16, or a damaged batch",
        remedy="start a new run with a lower learning rate of the model that is named, or with its "
        "optimizer.grad_clip set (a resumed run keeps its own)",
        window=20,
        needed=None,
    ),
    "equal_rewards": Detector(
        equal_rewards,
        ("reward/std", "reward/mean", "response/truncation_rate"),
        meaning="a policy that solves no prompt or every one, a verifier that looks for another form of "
        "answer, or responses that are cut off before it",
        remedy="read some samples and score one with `sppo-ray score`; say in data.prompt_suffix how to mark "
        "the answer, raise rollout.max_response_tokens, or take easier (or harder) prompts",
        window=None,
        needed=None,
        only_warns=True,
    ),
    "all_truncated": Detector(
        all_truncated,
        ("response/truncation_rate",),
        meaning="too little room for an answer, or a model that does not know how to end (no end token in "
        "its chat template or generation_config.json)",
        remedy="read some samples; raise rollout.max_response_tokens, or correct eos_token_id",
        window=None,
        needed=None,
        only_warns=True,
    ),
    "value_collapse": Detector(
        value_collapse,
        _VALUES,
        meaning="a critic that went dead or saturated, so that advantages are rewards minus a constant",
        remedy="start a new run with a lower critic.optimizer.lr, or with critic.warmup_steps",
    ),
    "critic_blind": Detector(
        critic_blind,
        _VALUES,
        meaning="a critic that cannot read the prompts (too small, wrong tokenizer, all prompts end alike) "
        "or barely learns",
        remedy="raise critic.optimizer.lr, take a larger critic, or use algorithm reinforce, which this run "
        "amounts to",
        window=20,
        needed=20,
        only_warns=True,
    ),
    "negative_advantages": Detector(
        negative_advantages,
        ("advantage/mean",),
        meaning="a critic whose values are still far above the rewards (a new one says 0.5 of every prompt), "
        "so that most responses are made less likely",
        remedy="wait some steps; if it lasts, raise critic.optimizer.lr. Where few prompts are solved at the "
        "start, a new run with algorithm.center=negative (sppo), or with the critic of an earlier run, "
        "begins at the right level",
        only_warns=True,
    ),
    "entropy_collapse": Detector(
        entropy_collapse,
        ("policy/entropy", "reward/mean"),
        meaning="a policy that gives the same response to every prompt and cannot improve any more",
        remedy="lower learner.optimizer.lr, set algorithm.entropy_coefficient or algorithm.kl, raise "
        "algorithm.clip_high",
    ),
    "truncation_rise": Detector(
        truncation_rise,
        ("response/truncation_rate",),
        meaning="responses that no longer end: repetition, or a reward that pays for length",
        remedy="read some samples; set algorithm.overlong, raise rollout.max_response_tokens or lower "
        "learner.optimizer.lr",
    ),
    "reward_error_rate": Detector(
        reward_error_rate,
        ("reward/errors", "samples/count"),
        meaning="a verifier that hangs or crashes on what the policy writes now; these samples are missing "
        "from the updates",
        remedy="see the reward-error events, try one with `sppo-ray score`; raise reward.deadline_s or "
        "reward.memory_mib",
    ),
    "over_optimisation": Detector(
        over_optimisation,
        ("reward/mean", "reward/watched"),
        meaning="a policy that exploits what its reward model gets wrong",
        remedy="start a new run with algorithm.kl, with a reward model trained on responses of the present "
        "policy, or with a second reward added to the first",
    ),
    "clip_fraction_rise": Detector(
        clip_fraction_rise,
        ("policy/clip_fraction_low", "policy/clip_fraction_high"),
        meaning="updates that move the policy too far from what was sampled",
        remedy="lower learner.optimizer.lr, take fewer minibatches a step, or lower loop.max_staleness",
    ),
    "ratio_drift": Detector(
        ratio_drift,
        ("policy/ratio_mean",),
        meaning="samples that are not of the policy that the learner takes for theirs",
        remedy="lower loop.max_staleness or learner.optimizer.lr; with mismatch too, the engine computes "
        "something else",
    ),
    "effective_sample_size": Detector(
        effective_sample_size,
        ("policy/effective_sample_size",),
        meaning="samples of a policy so far from the learner's that few tokens outweigh all others",
        remedy="lower loop.max_staleness or learner.optimizer.lr, take fewer minibatches a step; with "
        "algorithm.loss dis, try PPO's clip",
    ),
    "kl": Detector(
        kl,
        ("policy/approx_kl_k3",),
        meaning="updates that take the policy far from itself within a step",
        remedy="lower learner.optimizer.lr, take fewer minibatches a step, set algorithm.kl",
    ),
    "mismatch": Detector(
        mismatch,
        ("mismatch/logprob_difference_mean",),
        meaning="an engine that does not compute what the learner does: stale weights, another temperature, "
        "a broken kernel",
        remedy="see the weight-sync events; set weight_sync.verify to true; the same dtype on both sides; a "
        "fresh engine",
    ),
}
"""Detectors by the name of the setting with their limit."""
