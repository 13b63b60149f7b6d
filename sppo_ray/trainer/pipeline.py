"""From prompts to scored trajectories: generation, the critic's values and the verifier, all at the same time.

    dispatch(step, prompts) --+--> critic.values(prompts)  (prompt critic) ------------+
                              |--> fleet.generate greedily, scored  (ReMax) -----------+
                              '--> fleet.generate --trajectory--> scorer.score --------+--> Cohort.take(n)

A cohort is one step's prompts. Values are asked for when the prompts are dispatched and are there long before the
first response is finished. Outcomes leave in the order in which responses FINISHED (or in the order of the prompts),
never in the order in which their scores came in, so that a run with one engine is reproducible.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from sppo_ray.errors import UserError
from sppo_ray.seeding import derive_seed
from sppo_ray.trainer.interfaces import Critic, Scorer, ScoreRequest
from sppo_ray.types import (
    GreedyBaseline,
    Prompt,
    PromptValue,
    RolloutRequest,
    SamplingSettings,
    ScoredTrajectory,
    Trajectory,
    Verdict,
)

T = TypeVar("T")
Decode = Callable[[Sequence[int]], str]
UNIT_RANGE = (0.0, 1.0)


class RewardOutOfRange(UserError):
    """A verifier returned a number outside its declared range; outside [0, 1] a critic's cross-entropy has no meaning."""


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
        self.generated_tokens = 0  # of all responses so far, greedy ones included
        loop = asyncio.get_running_loop()
        self._slots: list[asyncio.Future[asyncio.Future[Outcome]]] = [loop.create_future() for _ in range(size)]
        self._order = order
        self._arrived = 0
        self._taken = 0

    @property
    def finished(self) -> int:
        """Responses generated so far."""
        return self._arrived

    @property
    def remaining(self) -> int:
        """Outcomes that nobody has taken yet."""
        return self.size - self._taken

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
        _fail(self._slots, error)


class SamplePipeline:
    """Starts cohorts and carries each trajectory to its score.

    `critic` is the prompt critic whose values go with the samples, or None. With `greedy_baseline` each prompt gets one
    greedy response more, whose reward goes with its samples.
    """

    def __init__(
        self,
        *,
        fleet: Generator,
        critic: Critic | None,
        scorer: Scorer,
        decode: Decode,
        sampling: SamplingSettings,
        order: Literal["finish", "dispatch"],
        seed: int,
        reward_range: tuple[float, float] = UNIT_RANGE,
        greedy_baseline: bool = False,
    ) -> None:
        self._fleet = fleet
        self._critic = critic
        self._scorer = scorer
        self._decode = decode
        self._sampling = sampling
        self._order = order
        self._seed = seed
        self._reward_range = reward_range
        self._greedy_baseline = greedy_baseline
        self._tasks: set[asyncio.Future[Any]] = set()

    def dispatch(self, step: int, prompts: Sequence[Prompt], samples_per_prompt: int = 1, *, draw: int = 0) -> Cohort:
        """Send a step's prompts on their way and return at once. `draw` tells apart several cohorts of one step."""
        cohort = Cohort(step, prompts, len(prompts) * samples_per_prompt, self._order)
        purpose = f"step-{step}" if draw == 0 else f"step-{step}.{draw}"
        self._start(self._produce(cohort, samples_per_prompt, purpose))
        return cohort

    async def close(self) -> None:
        while self._tasks:  # one that is cancelled may have started another in its last turn
            under_way = list(self._tasks)
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            self._tasks.difference_update(under_way)

    def _start(self, work: Awaitable[T]) -> asyncio.Future[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _produce(self, cohort: Cohort, samples_per_prompt: int, purpose: str) -> None:
        values = self._values_of(cohort.prompts)
        baselines = self._baselines_of(cohort, purpose)
        try:
            requests = build_requests(cohort.prompts, samples_per_prompt, self._seed, purpose)
            position_of = {request.request_id: position for position, request in enumerate(requests)}
            async for trajectory in self._fleet.generate(requests, self._sampling):
                position = position_of[trajectory.request_id]
                index = position // samples_per_prompt
                cohort.generated_tokens += len(trajectory.response_ids)
                baseline = baselines[index] if baselines else None
                scored = self._finish(cohort.prompts[index], trajectory, values, baseline, index)
                cohort.arrive(position, self._start(scored))
        except Exception as error:  # boundary: whatever stops generation reaches the loop through the cohort
            cohort.fail(error)
            values.add_done_callback(lambda future: future.cancelled() or future.exception())  # nobody may be left to see it

    def _values_of(self, prompts: Sequence[Prompt]) -> asyncio.Future[list[PromptValue | None]]:
        if self._critic is not None:
            return self._start(self._critic.values([prompt.critic_token_ids for prompt in prompts]))
        without: asyncio.Future[list[PromptValue | None]] = asyncio.get_running_loop().create_future()
        without.set_result([None] * len(prompts))
        return without

    def _baselines_of(self, cohort: Cohort, purpose: str) -> list[asyncio.Future[Outcome]]:
        """One scored greedy response a prompt, in their order; none without a greedy baseline."""
        if not self._greedy_baseline:
            return []
        loop = asyncio.get_running_loop()
        baselines: list[asyncio.Future[Outcome]] = [loop.create_future() for _ in cohort.prompts]
        self._start(self._produce_greedily(cohort, baselines, purpose))
        return baselines

    async def _produce_greedily(self, cohort: Cohort, baselines: list[asyncio.Future[Outcome]], purpose: str) -> None:
        requests = build_requests(cohort.prompts, 1, self._seed, f"{purpose}-greedy")
        index_of = {request.request_id: index for index, request in enumerate(requests)}
        no_value: asyncio.Future[list[PromptValue | None]] = asyncio.get_running_loop().create_future()
        no_value.set_result([None] * len(requests))
        try:
            async for trajectory in self._fleet.generate(requests, replace(self._sampling, temperature=0.0)):
                index = index_of[trajectory.request_id]
                cohort.generated_tokens += len(trajectory.response_ids)
                scored = self._start(self._finish(cohort.prompts[index], trajectory, no_value, None, index))
                scored.add_done_callback(functools.partial(_hand_on, baselines[index]))
        except Exception as error:  # boundary: the samples that wait for their baseline raise it where the loop takes them
            _fail(baselines, error)

    async def _finish(
        self,
        prompt: Prompt,
        trajectory: Trajectory,
        values: asyncio.Future[list[PromptValue | None]],
        baseline: asyncio.Future[Outcome] | None,
        index: int,
    ) -> Outcome:
        text = self._decode(trajectory.response_ids)
        verdict = await self._scorer.score(ScoreRequest(text, prompt.ground_truth, prompt.source, prompt.text, prompt.extra))
        # Waited for also where it is not needed: the step has to count its tokens.
        greedy = None if baseline is None else await baseline
        if verdict.reward is None:
            return UnscoredTrajectory(prompt, trajectory, verdict.reason)
        require_reward_in_range(verdict, prompt, self._reward_range)
        scored = ScoredTrajectory(
            prompt, trajectory, text, verdict.reward, verdict.reason, verdict.seconds, (await values)[index]
        )
        return scored if greedy is None else _with_baseline(scored, greedy)


def _with_baseline(scored: ScoredTrajectory, greedy: Outcome) -> Outcome:
    if isinstance(greedy, UnscoredTrajectory):
        return UnscoredTrajectory(scored.prompt, scored.trajectory, f"greedy baseline: {greedy.reason}")
    return replace(scored, baseline=GreedyBaseline(greedy.reward, len(greedy.trajectory.response_ids)))


def _hand_on(waiting: asyncio.Future[Outcome], scored: asyncio.Future[Outcome]) -> None:
    """What became of `scored` is what `waiting` waits for."""
    if scored.cancelled() or waiting.done():
        return
    error = scored.exception()
    if error is not None:
        _fail([waiting], error)
    else:
        waiting.set_result(scored.result())


def _fail(futures: Sequence[asyncio.Future[Any]], error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
            future.exception()  # marks it as seen: only those that somebody awaits need to raise


def build_requests(prompts: Sequence[Prompt], samples_per_prompt: int, seed: int, purpose: str) -> list[RolloutRequest]:
    """One request a sample; its seed depends on the run's seed, the purpose, the prompt and the sample alone."""
    return [
        RolloutRequest(
            f"{purpose}/{index}/{sample}", prompt.id, prompt.token_ids, derive_seed(seed, purpose, prompt.id, index, sample)
        )
        for index, prompt in enumerate(prompts)
        for sample in range(samples_per_prompt)
    ]


def require_reward_in_range(verdict: Verdict, prompt: Prompt, declared: tuple[float, float] = UNIT_RANGE) -> None:
    """Raise RewardOutOfRange for a reward that is not in the declared range (NaN included)."""
    low, high = declared
    if verdict.reward is None or (math.isfinite(verdict.reward) and low <= verdict.reward <= high):
        return
    raise RewardOutOfRange(
        f"prompt {prompt.id}: the verifier returned {verdict.reward}, outside its range [{low:g}, {high:g}]: rescale the reward "
        "function, or declare its range in reward.function.range"
    )
