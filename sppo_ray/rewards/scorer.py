"""The interface of what scores responses: verifier processes, a reward model, a judge, or a
combination of them (`sppo_ray.rewards.build`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from sppo_ray.config import ModelReward
from sppo_ray.types import ScoreRequest, Verdict

Conversation = list[Mapping[str, str]]
"""Chat messages, the response last."""
Ask = Callable[[ModelReward, Sequence[Conversation]], Awaitable[Sequence[float | str]]]
"""Returns the score of each conversation by a reward model; a text says why there is none."""


class Scorer(Protocol):
    async def ready(self) -> None:
        """Wait until it can score. Raises UserError when it never will."""

    async def score_all(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """Return the verdicts in the order of the requests. Raises UserError when the reward
        function is unusable.
        """

    def counts(self) -> Mapping[str, int]:
        """Totals since the start; "scored" counts verdicts, including errors."""

    async def close(self) -> None: ...
