"""The game of `guess-number` behind a slow tool: an answer takes as long as a tool call would."""

from __future__ import annotations

import asyncio
import random

from sppo_ray.environments.base import Observation, Row
from sppo_ray.environments.guess_number import GuessNumber


class SlowGuessNumber(GuessNumber):
    """Each answer takes a time between `least_s` and `most_s`, which the episode's seed decides."""

    def __init__(self, row: Row, seed: int, least_s: float = 0.0, most_s: float = 0.0) -> None:
        super().__init__(row, seed)
        self._draw = random.Random(seed)
        self._bounds = least_s, most_s

    async def step(self, action: str) -> Observation:
        await asyncio.sleep(self._draw.uniform(*self._bounds))
        return await super().step(action)
