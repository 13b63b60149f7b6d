"""The turns of a recorded episode, as the page and the report show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COLUMNS = ("turn_lengths", "turn_rewards", "turn_texts")
"""What `turns_of` reads of a row of trajectories/."""


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """An action, or the observation after it."""

    is_action: bool
    text: str
    tokens: int
    reward: float | None  # the environment's part for an action; None for an observation


def turns_of(row: Mapping[str, Any]) -> list[RecordedTurn]:
    """Return actions and observations in order; none without an environment, and for a file of an
    older release, which has no texts.
    """
    texts, lengths = row["turn_texts"] or (), row["turn_lengths"] or ()
    rewards = dict(enumerate(row["turn_rewards"] or ()))
    return [
        RecordedTurn(at % 2 == 0, text, tokens, rewards.get(at // 2) if at % 2 == 0 else None)
        for at, (text, tokens) in enumerate(zip(texts, lengths, strict=False))  # the last has no observation
    ]
