"""Rewards from the scores of a reward model, without the model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sppo_ray.config import AffineTransform, ModelReward, SigmoidTransform
from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from sppo_ray.rewards.model import ModelScorer, conversation_of, reward_of
from sppo_ray.trainer.score_drift import ScoreDrift
from sppo_ray.types import ScoreRequest, Verdict

MESSAGES = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"})


def request(response: str, prompt: str = "", messages: Any = MESSAGES) -> ScoreRequest:
    return ScoreRequest(response, "", "test", prompt, {}, messages)


def score(scores: Sequence[float | str], transform: Any) -> list[Verdict]:
    async def ask(conversations: Sequence[Any]) -> Sequence[float | str]:
        assert len(conversations) == len(scores)
        return scores

    scorer = ModelScorer(ModelReward(model="m", transform=transform), ask)
    verdicts = asyncio.run(scorer.score_all([request("x") for _ in scores]))
    assert scorer.counts() == {"scored": len(scores), "errors": sum(v.is_error for v in verdicts)}
    return verdicts


def test_transforms() -> None:
    # sigmoid((3 - 1) / 2) = 1 / (1 + 1/e) = 0.7311
    assert reward_of(3.0, SigmoidTransform(center=1.0, scale=2.0)) == pytest.approx(0.731059)
    assert [reward_of(x, SigmoidTransform()) for x in (-1e9, 0.0, 1e9)] == [0.0, 0.5, 1.0]
    affine = AffineTransform(low=-2.0, high=6.0)
    assert [reward_of(x, affine) for x in (-3.0, -2.0, 0.0, 6.0, 7.0)] == [0.0, 0.0, 0.25, 1.0, 1.0]
    assert reward_of(-7.5, None) == -7.5


def test_a_score_is_a_part_and_what_has_none_is_an_error() -> None:
    good, long, broken = score([0.0, "9 tokens", math.nan], SigmoidTransform())
    assert (good.reward, good.reason, good.parts) == (0.5, "scored", {"score": 0.0})
    assert (long.reward, long.reason) == (None, "error: 9 tokens")
    assert (broken.reward, broken.reason) == (None, "error: the reward model's score is nan")


def test_the_model_reads_the_messages_and_the_response_without_thinking() -> None:
    assert conversation_of(request("<think>hm</think> Hello")) == [
        *MESSAGES,
        {"role": "assistant", "content": "Hello"},
    ]
    assert conversation_of(request("hm</think>Hi", "Q<think>", ())) == [
        {"role": "user", "content": "Q<think>"},
        {"role": "assistant", "content": "Hi"},
    ]
    assert conversation_of(request("never ends", "Q<think>"))[-1]["content"] == ""


def test_of_an_episode_the_model_reads_all_turns() -> None:
    turns = (
        {"role": "assistant", "content": "hm</think> <call>1</call>"},
        {"role": "tool", "content": "<think>2"},
    )
    asked = replace(request("yes</think>3", "Q<think>"), turns=turns)
    assert conversation_of(asked) == [
        *MESSAGES,
        {"role": "assistant", "content": "<call>1</call>"},
        {"role": "tool", "content": "<think>2"},
        {"role": "assistant", "content": "3"},
    ]


def test_raw_scores_are_refused_where_the_critic_needs_probabilities() -> None:
    model = "--reward.function={type: model, model: m}"
    with pytest.raises(UserError, match=r"score of reward model m has no limits.*\{type: sigmoid\}"):
        load_config("quickstart", [model])
    raw = load_config("quickstart", [model, "--algorithm.type=reinforce"])
    assert raw.reward.range == (-math.inf, math.inf)
    with pytest.raises(UserError, match="low is 2 and high 2: give the score of reward 0 first"):
        AFFINE = "{type: model, model: m, transform: {type: affine, low: 2, high: 2}}"
        load_config("quickstart", [f"--reward.function={AFFINE}"])


def test_drift_is_counted_in_deviations_of_the_first_step() -> None:
    first = {"reward/score": 1.0, "reward/score_std": 0.5, "reward/mean": 0.7}
    drift = ScoreDrift()
    assert drift.of(first) == {"reward/score_drift": 0.0}
    later = {"reward/score": 2.5, "reward/score_std": 0.1}
    assert drift.of(later) == {"reward/score_drift": 3.0}  # (2.5 - 1) / 0.5
    rows = [{"eval/reward/score": 9.0}, first | {"seconds/step": 1.0}, later | {"seconds/step": 1.0}]
    assert ScoreDrift.since_the_first_of(rows).of(later) == {"reward/score_drift": 3.0}
