"""Empirical solve rates: what k responses of the policy to each prompt earned (avg@k), outside of any training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sppo_ray.algorithms.shaping import Shaping, unshaped
from sppo_ray.trainer.evaluator import Grader
from sppo_ray.types import Prompt

_REPORTS = 5  # progress lines of a set of prompts


@dataclass(frozen=True, slots=True)
class SolveRate:
    """What k responses to one prompt earned."""

    rewards: tuple[float, ...]  # those that the verifier could decide, in no order
    errors: int  # responses that it could not

    @property
    def mean(self) -> float:
        """avg@k over the graded responses; NaN when there is none."""
        return math.fsum(self.rewards) / len(self.rewards) if self.rewards else math.nan


async def solve_rates(
    grader: Grader, prompts: Sequence[Prompt], k: int, report: Callable[[int, int], None], *, shaped: Shaping = unshaped
) -> list[SolveRate]:
    """The solve rate of each prompt, in their order; their ids are unique. The same seed gives the same responses. `shaped` is
    what the critic was told of a reward.

    `report(done, total)` is called about five times, with numbers of responses. Raises what the grader raises.
    """
    found: dict[str, list[float | None]] = {prompt.id: [] for prompt in prompts}
    total = k * len(prompts)
    every = max(1, total // _REPORTS)
    done = 0
    async with contextlib.aclosing(grader.graded(prompts, [k] * len(prompts))) as stream:
        async for graded in stream:
            reward = graded.verdict.reward
            found[graded.prompt.id].append(reward if reward is None else shaped(reward, len(graded.trajectory.response_ids)))
            done += 1
            if done % every == 0:
                report(done, total)
    return [_solve_rate(found[prompt.id]) for prompt in prompts]


def _solve_rate(rewards: Sequence[float | None]) -> SolveRate:
    decided = tuple(reward for reward in rewards if reward is not None)
    return SolveRate(decided, len(rewards) - len(decided))
