"""Rewards from the scores of a reward model: conversations in, transformed scores out. No torch.

    ScoreRequest --conversation_of--> messages + response --ask--> score --reward_of--> reward in [0, 1]

The model itself is `sppo_ray.models.reward_model`; in a run it lives in actors of its own.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from sppo_ray.config import AffineTransform, ModelReward, SigmoidTransform
from sppo_ray.rewards.extract import with_open_thinking, without_thinking
from sppo_ray.types import ScoreRequest, Verdict


class ModelScorer:
    """Scores responses with a reward model. A conversation without a finite score is an error."""

    def __init__(
        self,
        settings: ModelReward,
        ask: Callable[[Sequence[list[Mapping[str, str]]]], Awaitable[Sequence[float | str]]],
    ) -> None:
        """`ask` returns the score of each conversation; a text says why there is none."""
        self._settings = settings
        self._ask = ask
        self._scored = self._errors = 0

    async def ready(self) -> None:
        await self._ask([])

    async def score_all(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        started = time.perf_counter()
        scores = await self._ask([conversation_of(request) for request in requests])
        seconds = time.perf_counter() - started
        verdicts = [self._verdict(score, seconds) for score in scores]
        self._scored += len(verdicts)
        self._errors += sum(verdict.is_error for verdict in verdicts)
        return verdicts

    def counts(self) -> Mapping[str, int]:
        return {"scored": self._scored, "errors": self._errors}

    async def close(self) -> None:
        """Nothing to close."""

    def _verdict(self, score: float | str, seconds: float) -> Verdict:
        if isinstance(score, str):
            return Verdict(None, f"error: {score}", seconds)
        if not math.isfinite(score):
            return Verdict(None, f"error: the reward model's score is {score}", seconds)
        reward = reward_of(score, self._settings.transform)
        return Verdict(reward, "scored", seconds, parts={"score": score})


def conversation_of(request: ScoreRequest) -> list[Mapping[str, str]]:
    """Return the prompt's messages, of an episode its turns, and the response, without thinking.
    Without messages (a file of `sppo-ray score`) the prompt's text is the user's message.
    """
    messages = request.messages or ({"role": "user", "content": request.prompt},)
    return [*messages, *read_turns(request), {"role": "assistant", "content": read_response(request)}]


def read_turns(request: ScoreRequest) -> list[Mapping[str, str]]:
    """Return the turns of an episode before the response, the policy's without their thinking."""
    return [
        {**turn, "content": _spoken(turn["content"], request)} if turn["role"] == "assistant" else turn
        for turn in request.turns
    ]


def read_response(request: ScoreRequest) -> str:
    """Return the response as reward models and judges read it: without its thinking."""
    return _spoken(request.response, request)


def _spoken(text: str, request: ScoreRequest) -> str:
    return without_thinking(with_open_thinking(text, request.prompt)).strip()


def reward_of(score: float, transform: SigmoidTransform | AffineTransform | None) -> float:
    """Return the reward of a score, in [0, 1] with a transform."""
    if isinstance(transform, SigmoidTransform):
        return _sigmoid((score - transform.center) / transform.scale)
    if isinstance(transform, AffineTransform):
        return min(1.0, max(0.0, (score - transform.low) / (transform.high - transform.low)))
    return score


def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1.0 + math.exp(logit))
