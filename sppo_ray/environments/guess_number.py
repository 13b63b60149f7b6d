"""Guess a number in a few turns: a game of several turns that a tiny transformer learns with RL.

    prompt        15?          the number is from 1 to 15
    action        8
    observation   +            it is higher (-: lower)
    action        12           ... and so on; the number itself ends the episode with reward 1

An action that is no number in the range gets the observation `x`. With `environment.max_turns` 4 a
search by halves finds every number. A policy that ignores the answers, or does not halve, misses
some. The range is in the prompt, so a critic can predict the difficulty.

Pure standard library.
"""

from __future__ import annotations

import random
import re

from sppo_ray.environments.base import Observation, Row

CEILINGS = (3, 15)  # the largest number of an episode is drawn from this range, both ends included
TURNS = 4
HIGHER, LOWER, NO_GUESS = "+", "-", "x"
_GUESS = re.compile(r"([0-9]{1,3})")
_PROMPT = re.compile(r"([0-9]{1,3})\?")


def generate_example(index: int, *, seed: int) -> tuple[str, str]:
    """Generate prompt text and the number to find, of example `index`. Pure.

    Prompts of equal range are equal texts; their numbers differ.
    """
    rng = random.Random(f"guess-number/{seed}/{index}")
    ceiling = rng.randint(*CEILINGS)
    return f"{ceiling}?", str(rng.randint(1, ceiling))


def ceiling_of(prompt: str) -> int:
    """Return the largest number of the range in a prompt. Raises ValueError without one."""
    found = _PROMPT.search(prompt)
    if found is None:
        raise ValueError(f"{prompt[-40:]!r} has no range like '15?' of a guess-number prompt")
    return int(found[1])


class GuessNumber:
    """One episode."""

    def __init__(self, row: Row, seed: int) -> None:
        self._number = int(row.ground_truth)
        self._ceiling = ceiling_of(row.prompt)

    async def step(self, action: str) -> Observation:
        """Compare the guess with the number."""
        guess = _GUESS.fullmatch(action.strip())
        if guess is None or not 1 <= int(guess[1]) <= self._ceiling:
            return Observation(NO_GUESS, reason="no guess")
        if int(guess[1]) == self._number:
            return Observation(reward=1.0, done=True, reason="found")
        return Observation(HIGHER if int(guess[1]) < self._number else LOWER, reason="not found")
