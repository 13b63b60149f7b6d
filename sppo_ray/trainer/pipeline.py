"""From prompts to scored trajectories: generation, the critic's values and the verifier, all at the same time.

    dispatch(step, prompts) --+--> critic.values(prompts)  ----------------------------+
                              '--> fleet.generate --trajectory--> scorer.score --------+--> Cohort.take(n)

A cohort is one step's prompts. Values are asked for when the prompts are dispatched and are there long before the
first response is finished. Outcomes leave in the order in which responses FINISHED (or in the order of the prompts),
never in the order in which their scores came in, so that a run with one engine is reproducible.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sppo_ray.errors import UserError
from sppo_ray.seeding import derive_seed
from sppo_ray.trainer.interfaces import Critic, Scorer, ScoreRequest
from sppo_ray.types import Prompt, PromptValue, RolloutRequest, SamplingSettings, ScoredTrajectory, Trajectory, Verdict

Decode = Callable[[Sequence[int]], str]


class RewardOutOfRange(UserError):
    """A verifier returned a number outside [0, 1]: the critic's cross-entropy has no meaning for it."""


@dataclass(frozen=True, slots=True)
class UnscoredTrajectory:
    """A response that the verifier could not judge: counted, logged, left out of the update."""

    prompt: Prompt
    trajectory: Trajectory
    reason: str


Outcome = ScoredTrajectory | UnscoredTrajectory


class Generator(Protocol):
    def generate(self, requests: Sequence[RolloutRequest], sampling: SamplingSettings) -> AsyncIterator[Trajectory]: ...


class Cohort:
    """One step's outcomes. `take(n)` gives the next n in order, as soon as they are there."""

    def __init__(self, step: int, prompts: Sequence[Prompt], size: int, order: Literal["finish", "dispatch"]) -> None:
        self.step = step
        self.prompts = tuple(prompts)
        self.size = size
        loop = asyncio.get_running_loop()
        self._slots: list[asyncio.Future[asyncio.Future[Outcome]]] = [loop.create_future() for _ in range(size)]
        self._order = order
        self._arrived = 0
        self._taken = 0

    @property
    def finished(self) -> int:
        """Responses generated so far."""
        return self._arrived

    async def take(self, count: int) -> list[Outcome]:
        """The next `count` outcomes. Raises what generation, scoring or the critic raised."""
        slots = self._slots[self._taken : self._taken + count]
        self._taken += len(slots)
        return [await (await slot) for slot in slots]

    def arrive(self, position: int, outcome: asyncio.Future[Outcome]) -> None:
        slot = self._slots[self._arrived if self._order == "finish" else position]
        self._arrived += 1
        slot.set_result(outcome)

    def fail(self, error: BaseException) -> None:
        for slot in self._slots:
            if not slot.done():
                slot.set_exception(error)
                slot.exception()  # marks it as seen: only the taken ones need to raise


class SamplePipeline:
    """Starts cohorts and carries each trajectory to its score."""

    def __init__(
        self,
        *,
        fleet: Generator,
        critic: Critic,
        scorer: Scorer,
        decode: Decode,
        sampling: SamplingSettings,
        order: Literal["finish", "dispatch"],
        seed: int,
    ) -> None:
        self._fleet = fleet
        self._critic = critic
        self._scorer = scorer
        self._decode = decode
        self._sampling = sampling
        self._order = order
        self._seed = seed
        self._tasks: set[asyncio.Future[None]] = set()

    def dispatch(self, step: int, prompts: Sequence[Prompt], samples_per_prompt: int = 1) -> Cohort:
        """Send a step's prompts on their way and return at once."""
        cohort = Cohort(step, prompts, len(prompts) * samples_per_prompt, self._order)
        task = asyncio.ensure_future(self._produce(cohort, samples_per_prompt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return cohort

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _produce(self, cohort: Cohort, samples_per_prompt: int) -> None:
        values = asyncio.ensure_future(self._critic.values([prompt.critic_token_ids for prompt in cohort.prompts]))
        try:
            requests = build_requests(cohort.prompts, samples_per_prompt, self._seed, f"step-{cohort.step}")
            position_of = {request.request_id: position for position, request in enumerate(requests)}
            async for trajectory in self._fleet.generate(requests, self._sampling):
                position = position_of[trajectory.request_id]
                scored = self._finish(
                    cohort.prompts[position // samples_per_prompt], trajectory, values, position // samples_per_prompt
                )
                cohort.arrive(position, asyncio.ensure_future(scored))
        except Exception as error:  # boundary: whatever stops generation reaches the loop through the cohort
            cohort.fail(error)
            values.add_done_callback(lambda future: future.cancelled() or future.exception())  # nobody may be left to see it

    async def _finish(
        self, prompt: Prompt, trajectory: Trajectory, values: asyncio.Future[list[PromptValue]], index: int
    ) -> Outcome:
        text = self._decode(trajectory.response_ids)
        verdict = await self._scorer.score(ScoreRequest(text, prompt.ground_truth, prompt.source, prompt.text, prompt.extra))
        if verdict.reward is None:
            return UnscoredTrajectory(prompt, trajectory, verdict.reason)
        require_reward_in_range(verdict, prompt)
        value = (await values)[index]
        return ScoredTrajectory(prompt, trajectory, text, verdict.reward, verdict.reason, verdict.seconds, value)


def build_requests(prompts: Sequence[Prompt], samples_per_prompt: int, seed: int, purpose: str) -> list[RolloutRequest]:
    """One request a sample; its seed depends on the run's seed, the purpose, the prompt and the sample alone."""
    return [
        RolloutRequest(
            f"{purpose}/{index}/{sample}", prompt.id, prompt.token_ids, derive_seed(seed, purpose, prompt.id, index, sample)
        )
        for index, prompt in enumerate(prompts)
        for sample in range(samples_per_prompt)
    ]


def require_reward_in_range(verdict: Verdict, prompt: Prompt) -> None:
    """Raise RewardOutOfRange for a reward that is not in [0, 1] (NaN included)."""
    if verdict.reward is None or (math.isfinite(verdict.reward) and 0.0 <= verdict.reward <= 1.0):
        return
    raise RewardOutOfRange(
        f"prompt {prompt.id}: the verifier returned {verdict.reward}, but the critic of Sequence-Level PPO needs "
        "rewards in [0, 1]: "
        "rescale the reward function"
    )
