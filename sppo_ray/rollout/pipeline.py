"""Turns prompts into scored trajectories. Generation, critic and verifier run concurrently.

    dispatch(step, prompts) --+--> critic.values(prompts)  (prompt critic) -------------+
                              |--> fleet.generate greedily, scored  (ReMax) ------------+
                              '--> fleet.generate --trajectory--> reward_client.score --+--> RolloutBatch

With an environment `Episodes` stands between the pipeline and the fleet; a trajectory is then an
episode, and its environment's parts of the reward belong to its verdict (`scoring.py`).

A cohort is the prompts of one step. The critic values them when they are dispatched, long before
the first response is finished. Outcomes are ordered by the end of generation or by prompt, never by
the end of scoring, so a run with one engine is reproducible.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from sppo_ray.errors import UserError
from sppo_ray.protocols import Critic, RewardClient
from sppo_ray.rollout.episodes import Episodes, Generator
from sppo_ray.rollout.scoring import Decode, score_responses
from sppo_ray.rollout.tasks import end_tasks, mark_read
from sppo_ray.seeding import derive_seed
from sppo_ray.types import (
    GreedyBaseline,
    Prompt,
    PromptValue,
    RequestId,
    RolloutRequest,
    SamplingSettings,
    ScoredTrajectory,
    TokenRows,
    Trajectory,
    Verdict,
)

T = TypeVar("T")
UNIT_RANGE = (0.0, 1.0)


class RewardOutOfRange(UserError):
    """A verifier returned a reward outside its declared range."""


@dataclass(frozen=True, slots=True)
class UnscoredTrajectory:
    """A response that the verifier could not score. It is counted, logged and not trained on."""

    prompt: Prompt
    trajectory: Trajectory
    reason: str


Outcome = ScoredTrajectory | UnscoredTrajectory


@dataclass(frozen=True, slots=True)
class Arrival:
    """A generated response before scoring."""

    prompt: Prompt
    index: int  # index of the prompt in its batch
    trajectory: Trajectory
    outcome: asyncio.Future[Outcome]


class RolloutBatch:
    """The outcomes of one step. `take(n)` returns the next n in order."""

    def __init__(
        self, step: int, prompts: Sequence[Prompt], size: int, order: Literal["finish", "dispatch"]
    ) -> None:
        self.step = step
        self.prompts = tuple(prompts)
        self.size = size
        self.generated_tokens = 0  # in all responses so far, including greedy ones
        loop = asyncio.get_running_loop()
        self._slots: list[asyncio.Future[Outcome]] = [loop.create_future() for _ in range(size)]
        self._order = order
        self._arrived = 0
        self._taken = 0

    @property
    def finished(self) -> int:
        """Number of responses generated so far."""
        return self._arrived

    @property
    def remaining(self) -> int:
        """Number of outcomes that have not been taken."""
        return self.size - self._taken

    async def take(self, count: int) -> list[Outcome]:
        """Wait for the next `count` outcomes. Raises errors of generation, scoring and the
        critic.
        """
        slots = self._slots[self._taken : self._taken + count]
        self._taken += len(slots)
        return [await slot for slot in slots]

    def slot_of(self, position: int) -> asyncio.Future[Outcome]:
        """Return the future for the outcome of the response that has just finished. `position` is
        the position of its request.
        """
        slot = self._slots[self._arrived if self._order == "finish" else position]
        self._arrived += 1
        return slot

    def fail(self, error: BaseException) -> None:
        _fail(self._slots, error)


class SamplePipeline:
    """Dispatches cohorts and scores their trajectories.

    `critic` is the prompt critic, or None. With `greedy_baseline` it also generates a greedy
    response per prompt and adds its reward to the prompt's samples.
    """

    def __init__(
        self,
        *,
        fleet: Generator,
        critic: Critic | None,
        reward_client: RewardClient,
        decode: Decode,
        sampling: SamplingSettings,
        order: Literal["finish", "dispatch"],
        seed: int,
        reward_range: tuple[float, float] = UNIT_RANGE,
        greedy_baseline: bool = False,
        episodes: Episodes | None = None,
    ) -> None:
        """`episodes`: with an environment, generates episodes with the fleet."""
        self._fleet = fleet
        self._episodes = episodes
        self._critic = critic
        self._reward_client = reward_client
        self._decode = decode
        self._sampling = sampling
        self._order = order
        self._seed = seed
        self._reward_range = reward_range
        self._greedy_baseline = greedy_baseline
        self._tasks: set[asyncio.Future[Any]] = set()

    def dispatch(
        self, step: int, prompts: Sequence[Prompt], samples_per_prompt: int = 1, *, draw: int = 0
    ) -> RolloutBatch:
        """Start generation for the prompts of a step and return at once. `draw` numbers the cohorts
        of one step.
        """
        cohort = RolloutBatch(step, prompts, len(prompts) * samples_per_prompt, self._order)
        purpose = f"step-{step}" if draw == 0 else f"step-{step}.{draw}"
        self._start(self._produce(cohort, samples_per_prompt, purpose))
        return cohort

    async def close(self) -> None:
        while self._tasks:  # a cancelled task may have started another one
            under_way = list(self._tasks)
            await end_tasks(under_way)
            self._tasks.difference_update(under_way)

    def _start(self, work: Awaitable[T]) -> asyncio.Future[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # the loop raises the first error and does not await the other samples of the step
        task.add_done_callback(mark_read)
        return task

    async def _produce(self, cohort: RolloutBatch, samples_per_prompt: int, purpose: str) -> None:
        values = self._values_of(cohort.prompts)
        baselines = self._baselines_of(cohort, purpose)
        try:
            requests = build_requests(cohort.prompts, samples_per_prompt, self._seed, purpose)
            position_of = {request.request_id: position for position, request in enumerate(requests)}
            async for burst in generated(
                self._fleet, self._episodes, requests, self._sampling, cohort.prompts
            ):
                arrivals = []
                for trajectory in burst:
                    position = position_of[trajectory.request_id]
                    index = position // samples_per_prompt
                    slot = cohort.slot_of(position)
                    arrivals.append(Arrival(cohort.prompts[index], index, trajectory, slot))
                cohort.generated_tokens += sum(one.num_actions for one in burst)
                self._start(self._finish(arrivals, values, baselines))
        except Exception as error:  # boundary: the loop raises it when it takes from the cohort
            cohort.fail(error)

    def _values_of(self, prompts: Sequence[Prompt]) -> asyncio.Future[list[PromptValue | None]]:
        if self._critic is not None:
            rows = TokenRows.of([prompt.critic_token_ids for prompt in prompts])
            return self._start(self._critic.values(rows))
        without: asyncio.Future[list[PromptValue | None]] = asyncio.get_running_loop().create_future()
        without.set_result([None] * len(prompts))
        return without

    def _baselines_of(self, cohort: RolloutBatch, purpose: str) -> list[asyncio.Future[Outcome]]:
        """Start one greedy response per prompt; return their outcomes in the order of prompts.

        Empty without a greedy baseline.
        """
        if not self._greedy_baseline:
            return []
        loop = asyncio.get_running_loop()
        baselines: list[asyncio.Future[Outcome]] = [loop.create_future() for _ in cohort.prompts]
        self._start(self._produce_greedily(cohort, baselines, purpose))
        return baselines

    async def _produce_greedily(
        self, cohort: RolloutBatch, baselines: list[asyncio.Future[Outcome]], purpose: str
    ) -> None:
        requests = build_requests(cohort.prompts, 1, self._seed, f"{purpose}-greedy")
        index_of = {request.request_id: index for index, request in enumerate(requests)}
        no_values: asyncio.Future[list[PromptValue | None]] = asyncio.get_running_loop().create_future()
        no_values.set_result([None] * len(requests))
        greedily = replace(self._sampling, temperature=0.0)
        try:
            async for burst in generated(self._fleet, self._episodes, requests, greedily, cohort.prompts):
                indices = [index_of[trajectory.request_id] for trajectory in burst]
                cohort.generated_tokens += sum(trajectory.num_actions for trajectory in burst)
                arrivals = [
                    Arrival(cohort.prompts[index], index, trajectory, baselines[index])
                    for index, trajectory in zip(indices, burst, strict=True)
                ]
                self._start(self._finish(arrivals, no_values, ()))
        except Exception as error:  # boundary
            # the loop raises it when it takes a sample that waits for its baseline
            _fail(baselines, error)

    async def _finish(
        self,
        arrivals: Sequence[Arrival],
        values: asyncio.Future[list[PromptValue | None]],
        baselines: Sequence[asyncio.Future[Outcome]],
    ) -> None:
        """Score a burst and set its outcomes. An error becomes the outcome of its samples."""
        try:
            scored = await score_responses(
                [(one.prompt, one.trajectory) for one in arrivals],
                reward_client=self._reward_client,
                decode=self._decode,
                asks_function=self._episodes is None or self._episodes.asks_reward_function,
            )
        except Exception as error:  # boundary: the loop raises it when it takes the outcomes
            _fail([one.outcome for one in arrivals], error)
            return
        for one, (text, verdict) in zip(arrivals, scored, strict=True):
            try:
                baseline = baselines[one.index] if baselines else None
                outcome = await self._outcome(one, text, verdict, values, baseline)
            except Exception as error:  # boundary, as above
                _fail([one.outcome], error)
            else:
                if not one.outcome.done():
                    one.outcome.set_result(outcome)

    async def _outcome(
        self,
        arrival: Arrival,
        text: str,
        verdict: Verdict,
        values: asyncio.Future[list[PromptValue | None]],
        baseline: asyncio.Future[Outcome] | None,
    ) -> Outcome:
        prompt, trajectory = arrival.prompt, arrival.trajectory
        # Wait for it also for an unscored sample, because the step counts its tokens.
        greedy = None if baseline is None else await baseline
        if verdict.reward is None:
            return UnscoredTrajectory(prompt, trajectory, verdict.reason)
        require_reward_in_range(verdict, prompt, self._reward_range)
        value = (await values)[arrival.index]
        scored = ScoredTrajectory(
            prompt,
            trajectory,
            text,
            verdict.reward,
            verdict.reason,
            verdict.seconds,
            value,
            parts=verdict.parts,
        )
        return scored if greedy is None else _with_baseline(scored, greedy)


def generated(
    fleet: Generator,
    episodes: Episodes | None,
    requests: Sequence[RolloutRequest],
    sampling: SamplingSettings,
    prompts: Sequence[Prompt],
) -> AsyncIterator[Sequence[Trajectory]]:
    """Return the stream of responses to `requests`: episodes where there is an environment."""
    if episodes is None:
        return fleet.generate(requests, sampling)
    return episodes.generate(requests, sampling, {prompt.id: prompt for prompt in prompts})


def _with_baseline(scored: ScoredTrajectory, greedy: Outcome) -> Outcome:
    if isinstance(greedy, UnscoredTrajectory):
        return UnscoredTrajectory(scored.prompt, scored.trajectory, f"greedy baseline: {greedy.reason}")
    return replace(scored, baseline=GreedyBaseline(greedy.reward, greedy.trajectory.num_actions))


def _fail(futures: Sequence[asyncio.Future[Any]], error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
            mark_read(future)


def build_requests(
    prompts: Sequence[Prompt], samples_per_prompt: int, seed: int, purpose: str
) -> list[RolloutRequest]:
    """Return one request per sample. Its seed depends only on `seed`, purpose, prompt and
    sample.
    """
    return [
        RolloutRequest(
            RequestId(purpose, index, sample),
            prompt.id,
            prompt.token_ids,
            derive_seed(seed, purpose, prompt.id, index, sample),
        )
        for index, prompt in enumerate(prompts)
        for sample in range(samples_per_prompt)
    ]


def require_reward_in_range(
    verdict: Verdict, prompt: Prompt, declared: tuple[float, float] = UNIT_RANGE
) -> None:
    """Raise RewardOutOfRange for a reward outside the declared range, NaN included."""
    low, high = declared
    if verdict.reward is None or (math.isfinite(verdict.reward) and low <= verdict.reward <= high):
        return
    raise RewardOutOfRange(
        f"prompt {prompt.id}: the verifier returned {verdict.reward}, outside its range [{low:g}, {high:g}]: "
        "rescale the reward function or the environment's rewards, or declare the range in "
        "reward.function.range or environment.range"
    )
