"""Signals of a step's samples, with numbers on paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sppo_ray.trainer.step_metrics import explained_variance, summarise_samples
from sppo_ray.types import PromptHistory, TrainingSample
from tests.training_data import training_sample


def sample(reward: float, value: float) -> TrainingSample:
    return training_sample("p", (4,), (5, 6), (-1.0, -1.0), reward, value)


def test_explained_variance() -> None:
    assert explained_variance([0.0, 1.0], [0.0, 1.0]) == 1.0
    assert explained_variance([0.3, 0.3], [0.0, 1.0]) == 0.0
    # R - V = -.5, .5: its variance is that of R, .25. Of -1, 1 it is four times as much
    assert explained_variance([1.0, 0.0], [0.0, 1.0]) == -3.0
    assert explained_variance([0.2, 0.9], [1.0, 1.0]) == 0.0  # the rewards do not vary


def test_values_near_the_ends_and_what_they_explain() -> None:
    samples = [sample(0.0, 0.01), sample(0.0, 0.5), sample(1.0, 0.99), sample(1.0, 0.99)]
    figures = summarise_samples(samples, learner_version=0)
    assert (figures["value/near_0"], figures["value/near_1"]) == (0.25, 0.5)
    # errors -.01, -.5, .01, .01: mean -.1225, variance (.0001 * 3 + .25) / 4 - .1225^2 = .04757
    assert figures["value/explained_variance"] == pytest.approx(1 - 0.047569 / 0.25, abs=1e-5)
    assert not any(name.startswith("tracker/") for name in figures)
    assert "value/token_explained_variance" not in figures


def test_token_values_are_compared_with_the_reward_not_with_their_target() -> None:
    # A bootstrapped target of .5 would be met exactly; the rewards 0 and 1 are not.
    samples = [
        replace(sample(reward, 0.5), token_values=np.full(2, 0.5), returns=np.full(2, 0.5))
        for reward in (0.0, 1.0)
    ]
    assert summarise_samples(samples, 0)["value/token_explained_variance"] == 0.0


def test_the_trackers_share() -> None:
    one = sample(1.0, 0.5)
    known = replace(one, scored=replace(one.scored, history=PromptHistory(0.75, 4.0, 0.4)))
    fresh = replace(one, scored=replace(one.scored, history=PromptHistory(0.5, 0.0, 0.0)))
    figures = summarise_samples([known, fresh], 0)
    assert (figures["tracker/known"], figures["tracker/share"]) == (0.5, 0.2)


def test_an_episode_without_room_for_another_turn_is_truncated() -> None:
    one = sample(1.0, 0.5)
    ends = ("stop", "length", "context", "turns")
    samples = [
        replace(
            one,
            scored=replace(one.scored, trajectory=replace(one.scored.trajectory, finish_reason=end)),
        )
        for end in ends
    ]
    assert summarise_samples(samples, 0)["response/truncation_rate"] == 0.5
