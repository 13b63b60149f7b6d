"""The tracker of prompts: numbers on paper, its blend with a critic on prompts of known rates, and
its state as JSON.
"""

from __future__ import annotations

import json
import random

import pytest

from sppo_ray.algorithms.tracker import PromptTracker, TrackedReward
from sppo_ray.types import PromptHistory


def learn(
    tracker: PromptTracker, prompt: str, *rewards: float, value: float | None = None
) -> PromptTracker:
    """One step for each reward."""
    for reward in rewards:
        tracker.learn([TrackedReward(prompt, reward, value, tracker.history(prompt, value))])
    return tracker


def test_rate_and_weight_on_paper() -> None:
    tracker = PromptTracker(0.5, has_critic=False)
    assert tracker.history("p", None) == PromptHistory(0.5, 0.0, 1.0)
    # a, b = 1/2, 1/2 -> .25 + 1, .25 -> .625, .125 + 1
    learn(tracker, "p", 1.0)
    assert tracker.history("p", None) == PromptHistory(1.25 / 1.5, 1.5, 1.0)
    learn(tracker, "p", 0.0)
    assert tracker.history("p", None) == PromptHistory(0.625 / 1.75, 1.75, 1.0)
    assert tracker.history("q", None).rate == 0.5 and len(tracker) == 1


def test_the_weight_tends_to_one_over_one_minus_rho() -> None:
    tracker = learn(PromptTracker(0.875, has_critic=False), "p", *[1.0] * 200)
    assert tracker.history("p", None).weight == pytest.approx(8.0)


def test_a_reward_does_not_change_its_own_history() -> None:
    """Two samples of one prompt in a step have the same history."""
    tracker = PromptTracker(0.875, has_critic=False)
    before = tracker.history("p", None)
    tracker.learn([TrackedReward("p", 1.0, None, before), TrackedReward("p", 0.0, None, before)])
    # .5 * .875 + 1 = 1.4375, then * .875;  (.5 * .875) * .875 + 1
    assert tracker.history("p", None).weight == pytest.approx((1.4375 + 0.4375) * 0.875 + 1)


def test_share_on_paper() -> None:
    tracker = PromptTracker(0.5, has_critic=True)
    assert tracker.history("p", 0.5) == PromptHistory(0.5, 0.0, 0.0)  # nothing known: V alone
    learn(tracker, "p", 1.0, value=0.5)
    assert tracker.history("p", 0.5) == PromptHistory(1.0, 1.0, 0.0)  # no estimate of V's error yet
    learn(tracker, "p", 1.0, value=0.5)
    # That sample had rate 1 and weight 1: (R - V)(rate - V) = .25 = (rate - V)^2, so c = 1 and
    # tau2 = .25. Now weight 1.5 and rate 1: p = (1.5 + .5) / 2.5 = .8; .16 / 1.5 = .10667
    history = tracker.history("p", 0.5)
    assert (history.rate, history.weight) == (1.0, 1.5)
    assert history.share == pytest.approx(0.25 / (0.25 + 0.16 / 1.5))


def baseline_errors(spread: float, critic_noise: float, *, passes: int = 40) -> tuple[float, float, float]:
    """Mean squared errors of V, of the rate and of the blend, over prompts of rates
    .5 +- `spread`. V is off by `critic_noise`, the same for a prompt at all times.
    """
    draw = random.Random(7)
    rates = {f"p{i}": min(1.0, max(0.0, 0.5 + draw.uniform(-spread, spread))) for i in range(100)}
    values = {p: min(1.0, max(0.0, rate + draw.gauss(0, critic_noise))) for p, rate in rates.items()}
    tracker, errors = PromptTracker(0.875, has_critic=True), [0.0, 0.0, 0.0]
    for step in range(passes):
        seen = {p: tracker.history(p, values[p]) for p in rates}
        if step >= passes // 2:
            for p, history in seen.items():
                blend = values[p] + history.share * (history.rate - values[p])
                for index, estimate in enumerate((values[p], history.rate, blend)):
                    errors[index] += (estimate - rates[p]) ** 2
        tracker.learn(
            [TrackedReward(p, float(draw.random() < rates[p]), values[p], seen[p]) for p in rates]
        )
    value, rate, blend = (error / (100 * (passes - passes // 2)) for error in errors)
    return value, rate, blend


def test_the_blend_is_better_than_either_and_leaves_a_good_critic_alone() -> None:
    value, rate, blend = baseline_errors(spread=0.45, critic_noise=0.12)
    assert blend < 0.8 * min(value, rate)
    value, rate, blend = baseline_errors(spread=0.45, critic_noise=0.0)  # V is right
    assert value == 0.0 and blend < rate / 10
    value, rate, blend = baseline_errors(spread=0.45, critic_noise=0.6)  # V is worthless
    assert blend < 1.1 * rate < value


def test_a_critic_that_knows_the_past_rewards_by_heart_is_not_pulled_further() -> None:
    """V = theta + (rate - theta) / 2 has half of the rate's noise d, so (theta - V)(rate - V) is
    -d^2 / 4, and any share above 0 would make the baseline worse.
    """
    draw = random.Random(3)
    rates = {f"p{i}": draw.uniform(0.2, 0.8) for i in range(100)}
    tracker = PromptTracker(0.875, has_critic=True)
    for _ in range(30):
        seen = {p: tracker.history(p, None) for p in rates}
        values = {p: rates[p] if not h.weight else (rates[p] + h.rate) / 2 for p, h in seen.items()}
        blended = {p: tracker.history(p, values[p]) for p in rates}
        tracker.learn(
            [TrackedReward(p, float(draw.random() < rates[p]), values[p], blended[p]) for p in rates]
        )
    assert {tracker.history(p, values[p]).share for p in rates} == {0.0}


def test_its_state_is_exact_json() -> None:
    draw = random.Random(1)
    tracker = PromptTracker(0.9, has_critic=True)
    for _ in range(50):
        learn(tracker, f"p{draw.randrange(5)}", float(draw.randrange(2)), value=draw.random())
    again = PromptTracker(0.9, has_critic=True)
    again.restore(json.loads(json.dumps(tracker.to_dict())))
    for one in (tracker, again):
        learn(one, "p1", 1.0, 0.0, value=0.3)
    assert again.to_dict() == tracker.to_dict()
    assert again.history("p1", 0.4) == tracker.history("p1", 0.4)
