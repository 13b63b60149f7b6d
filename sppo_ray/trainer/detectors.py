"""What can be seen in a step's figures when training goes wrong: one pure judgement each, with what it means and what to do.

A detector reads the figures of `metrics.jsonl` by their names there and compares them with absolute limits where a figure has an
absolute meaning (a ratio is near 1, a gradient is finite), else with what was usual in this run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Figures = Mapping[str, float]

KNOWN_AFTER = 8  # calm steps before anything is called usual
VARYING = 0.1  # reward/std from which on rewards vary: a solve rate between 1 % and 99 %
TOLD_APART = 0.01  # a usual spread of values below this has nothing to lose
SATURATED = 0.02  # values so near to 0 or 1, all of them
FAR_OFF, LEAP = 0.3, 0.1  # a constant value from the mean reward, and from that of the step before
REWARD_GAIN = 0.05  # a policy that gets better by this much may as well get surer
MISMATCH_RISE = (
    1e-3,
    100.0,
)  # nats, and times the usual: rounding of a float32 engine is 1e-7 with a factor of 4 between steps


class Odd(NamedTuple):
    """What is odd about a step, in words, and how much it counts."""

    seen: str
    weight: int = 1


class Usual:
    """Medians over the latest calm steps, and the step before, calm or not ({}: there was none)."""

    def __init__(self, rows: Sequence[Figures], previous: Figures) -> None:
        self._rows = rows
        self.previous = previous

    @property
    def is_known(self) -> bool:
        return len(self._rows) >= KNOWN_AFTER

    def __call__(self, name: str) -> float:
        return statistics.median(row[name] for row in self._rows)


Judge = Callable[[Figures, Usual, float], Odd | None]


@dataclass(frozen=True, slots=True)
class Detector:
    """`judge(figures, usual, limit)` says whether a step is odd; of the last `window` steps `needed` raise the alarm."""

    judge: Judge
    watches: tuple[str, ...]  # figures without which, or where they are not finite, there is nothing to judge
    meaning: str
    remedy: str
    window: int = 6
    needed: int | None = 3  # None: the limit itself
    only_warns: bool = False


def skipped_updates(figures: Figures, usual: Usual, limit: float) -> Odd | None:
    counts = [figures.get(f"{role}/skipped", 0.0) for role in ("policy", "critic")]
    skipped = sum(int(count) for count in counts if math.isfinite(count))
    names = [f"{role}/{name}" for role in ("policy", "critic") for name in ("loss", "grad_norm")]
    nonfinite = [name for name in names if not math.isfinite(figures.get(name, 0.0))]
    if not skipped and not nonfinite:
        return None
    what = f"{' and '.join(nonfinite)} not finite" if nonfinite else "a gradient was not finite"
    return Odd(f"{what}, {skipped} updates of the step skipped", max(skipped, 1))


def value_collapse(figures: Figures, usual: Usual, limit: float) -> Odd | None:
    spread, mean, reward = figures["value/std"], figures["value/mean"], figures["reward/mean"]
    if figures["reward/std"] < VARYING or not usual.is_known:
        return None
    before = usual("value/std")
    if before >= TOLD_APART and spread < limit * before:
        return Odd(f"value/std is {spread:.2g}, usually {before:.2g}")
    # A fresh critic is a constant too, but 0.5 (or, trained by squared error, a 0 that it leaves within the first steps), and a
    # slow one creeps towards the mean reward; a dead one sticks to an end or is thrown about.
    saturated = not SATURATED < mean < 1.0 - SATURATED
    thrown = abs(mean - reward) > FAR_OFF and abs(mean - usual.previous["value/mean"]) > LEAP
    if spread < TOLD_APART and (saturated or thrown):
        return Odd(f"the values of all prompts are {mean:.3g} (value/std {spread:.2g}) at a mean reward of {reward:.2f}")
    return None


def critic_blind(figures: Figures, usual: Usual, limit: float) -> Odd | None:
    if figures["reward/std"] < VARYING or figures["value/std"] >= limit:
        return None
    return Odd(f"value/std is {figures['value/std']:.2g} around {figures['value/mean']:.2f}")


def entropy_collapse(figures: Figures, usual: Usual, limit: float) -> Odd | None:
    if not usual.is_known:
        return None
    now, before = figures["policy/entropy"], usual("policy/entropy")
    gain = figures["reward/mean"] - usual("reward/mean")
    share = limit if gain < REWARD_GAIN else limit / 10
    if now >= share * before:
        return None
    return Odd(f"policy/entropy is {now:.2g}, usually {before:.2g}, and the mean reward changed by {gain:+.2f}")


def truncation_rise(figures: Figures, usual: Usual, limit: float) -> Odd | None:
    return _risen("response/truncation_rate", figures["response/truncation_rate"], usual, limit)


def reward_error_rate(figures: Figures, usual: Usual, limit: float) -> Odd | None:
    errors, scored = figures["reward/errors"], figures["samples/count"]
    if errors <= limit * (errors + scored):
        return None
    return Odd(f"{errors:.0f} of {errors + scored:.0f} responses could not be scored")


def clip_fraction_rise(figures: Figures, usual: Usual, limit: float) -> Odd | None:
    if not usual.is_known:
        return None
    names = "policy/clip_fraction_low", "policy/clip_fraction_high"
    now, before = sum(figures[name] for name in names), sum(usual(name) for name in names)
    return Odd(f"{now:.1%} of the tokens were clipped, usually {before:.1%}") if now > before + limit else None


def ratio_drift(figures: Figures, usual: Usual, limit: float) -> Odd | None:
    mean, weight = figures["policy/ratio_mean"], figures.get("policy/importance_mean", 1.0)
    if abs(mean - 1.0) > limit:
        return Odd(f"policy/ratio_mean is {mean:.3g}")
    return Odd(f"policy/importance_mean is {weight:.3g}") if weight < 1.0 - limit else None


def kl(figures: Figures, usual: Usual, limit: float) -> Odd | None:
    now = figures["policy/approx_kl_k3"]
    return Odd(f"policy/approx_kl_k3 is {now:.2g} nats a token") if now > limit else None


def mismatch(figures: Figures, usual: Usual, limit: float) -> Odd | None:
    now = figures["mismatch/logprob_difference_mean"]
    return Odd(f"mismatch/logprob_difference_mean is {now:.2g} nats") if now > limit else None


def synchronous_mismatch(figures: Figures, usual: Usual, limit: float) -> Odd | None:
    """Where nothing is stale, engine and learner differ by rounding alone, which does not grow by a factor of 100."""
    now, (floor, factor) = figures["mismatch/logprob_difference_mean"], MISMATCH_RISE
    if usual.is_known and now > max(floor, factor * usual("mismatch/logprob_difference_mean")):
        before = usual("mismatch/logprob_difference_mean")
        return Odd(f"mismatch/logprob_difference_mean is {now:.2g} nats, usually {before:.2g}")
    return mismatch(figures, usual, limit)


def _risen(name: str, now: float, usual: Usual, limit: float) -> Odd | None:
    if not usual.is_known or now <= usual(name) + limit:
        return None
    return Odd(f"{name} is {now:.2f}, usually {usual(name):.2f}")


_VALUES = ("value/std", "value/mean", "reward/std", "reward/mean")

DETECTORS: dict[str, Detector] = {
    "skipped_updates": Detector(
        skipped_updates,
        (),
        meaning="a learning rate that is too high, an overflow in bfloat16, or a damaged batch",
        remedy="lower the learning rate of the model that is named or set its optimizer.grad_clip, and go on from a checkpoint",
        window=20,
        needed=None,
    ),
    "value_collapse": Detector(
        value_collapse,
        _VALUES,
        meaning="a critic that went dead or saturated, so that advantages are rewards minus a constant",
        remedy="lower critic.optimizer.lr, give it warmup_steps, and go on from a checkpoint before it",
    ),
    "critic_blind": Detector(
        critic_blind,
        _VALUES,
        meaning="a critic that cannot read the prompts (too small, wrong tokenizer, all prompts end alike) or barely learns",
        remedy="raise critic.optimizer.lr, take a larger critic, or use algorithm reinforce, which this run amounts to",
        window=20,
        needed=20,
        only_warns=True,
    ),
    "entropy_collapse": Detector(
        entropy_collapse,
        ("policy/entropy", "reward/mean"),
        meaning="a policy that gives one and the same response to everything, from which nothing more is learned",
        remedy="lower learner.optimizer.lr, set algorithm.entropy_coefficient or algorithm.kl, raise algorithm.clip_high",
    ),
    "truncation_rise": Detector(
        truncation_rise,
        ("response/truncation_rate",),
        meaning="responses that no longer end: repetition, or a reward that pays for length",
        remedy="read some samples; set algorithm.overlong, raise rollout.max_response_tokens or lower learner.optimizer.lr",
    ),
    "reward_error_rate": Detector(
        reward_error_rate,
        ("reward/errors", "samples/count"),
        meaning="a verifier that hangs or crashes on what the policy writes now; these samples are missing from the updates",
        remedy="see the reward-error events, try one with `sppo-ray score`; raise reward.deadline_s or reward.memory_mib",
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
        remedy="lower loop.max_staleness or learner.optimizer.lr; with mismatch too, the engine computes something else",
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
        meaning="an engine that does not compute what the learner does: stale weights, another temperature, a broken kernel",
        remedy="see the weight-sync events; set weight_sync.verify to true; the same dtype on both sides; a fresh engine",
    ),
}
"""By the name of the setting that holds the limit."""
