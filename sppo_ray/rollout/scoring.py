"""The verdicts of responses: from the reward function, and for episodes from the environment.

    reward of an episode = sum of the environment's parts  (+ the reward function's, of the last action)
"""  # noqa: W505 (a formula)

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sppo_ray.protocols import RewardClient, ScoreRequest
from sppo_ray.types import FinishReason, Prompt, Trajectory, Turns, Verdict

Decode = Callable[[Sequence[np.ndarray]], list[str]]
"""Maps token ids of responses, [R] int32 each, to texts."""


async def score_responses(
    rows: Sequence[tuple[Prompt, Trajectory]],
    *,
    reward_client: RewardClient,
    decode: Decode,
    asks_function: bool = True,
) -> list[tuple[str, Verdict]]:
    """Return text and verdict of each response, in order. `asks_function`: whether the reward
    function scores the last action of an episode.
    """
    texts = decode([trajectory.response_ids for _, trajectory in rows])
    judged = [_judged(trajectory, text, decode) for (_, trajectory), text in zip(rows, texts, strict=True)]
    asked = [
        index
        for index, (_, trajectory) in enumerate(rows)
        if trajectory.turns is None or (asks_function and trajectory.finish_reason != "error")
    ]
    requests = [ScoreRequest.of(rows[at][0], judged[at], rows[at][1].turns) for at in asked]
    verdicts = dict(zip(asked, await reward_client.score(requests) if requests else [], strict=True))
    return [
        (text, _verdict(trajectory.turns, trajectory.finish_reason, verdicts.get(index)))
        for index, (text, (_, trajectory)) in enumerate(zip(texts, rows, strict=True))
    ]


def _judged(trajectory: Trajectory, text: str, decode: Decode) -> str:
    """What the reward function reads: the response, of an episode the last action."""
    if trajectory.turns is None:
        return text
    return decode([trajectory.response_ids[-int(trajectory.turns.lengths[-1, 0]) :]])[0]


def _verdict(turns: Turns | None, finish_reason: FinishReason, judged: Verdict | None) -> Verdict:
    if turns is None:
        assert judged is not None
        return judged
    if finish_reason == "error":
        return Verdict(None, turns.reason, turns.seconds)
    parts = math.fsum(turns.rewards)
    if judged is None:
        return Verdict(parts, turns.reason, turns.seconds)
    if judged.reward is None:
        return judged
    return replace(judged, reward=judged.reward + parts, seconds=judged.seconds + turns.seconds)
