"""Held-out evaluation with engines and verifier, during training and for `sppo-ray eval`.

    prompts, k --requests with fixed seeds--> fleet.generate --trajectory--> reward_client.score
        --> GradedTrajectory

Every evaluation uses the same prompts and seeds, so two evaluations differ only by the policy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sppo_ray.algorithms.shaping import Shaping, unshaped
from sppo_ray.evaluation.scores import EvalReport, GradedResponse, evaluate
from sppo_ray.protocols import Critic, RewardClient
from sppo_ray.rewards.error_rate import require_few_errors
from sppo_ray.rollout.episodes import Episodes, Generator
from sppo_ray.rollout.pipeline import UNIT_RANGE, build_requests, generated, require_reward_in_range
from sppo_ray.rollout.scoring import Decode, score_responses
from sppo_ray.seeding import derive_seed
from sppo_ray.types import (
    Prompt,
    PromptValue,
    RequestId,
    RolloutRequest,
    SamplingSettings,
    TokenRows,
    Trajectory,
    Verdict,
)

PURPOSE = "evaluation"  # part of request ids and seeds


@dataclass(frozen=True, slots=True)
class GradedTrajectory:
    """One response to a held-out prompt, with its verdict."""

    prompt: Prompt
    sample: int  # [0, k) within its prompt
    trajectory: Trajectory
    text: str
    verdict: Verdict

    def response(self) -> GradedResponse:
        """The part that the figures need."""
        return GradedResponse(
            prompt_id=self.prompt.id,
            source=self.prompt.source,
            sample_index=self.sample,
            reward=self.verdict.reward,
            response_text=self.text,
            num_tokens=self.trajectory.num_actions,
            truncated=self.trajectory.is_truncated,
            answer=self.verdict.answer,
            parts=self.verdict.parts,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that are sampled together; a sample's seed depends on its prompt's position."""

    prompts: Sequence[Prompt]
    samples: Sequence[int]  # how many of each prompt
    # called after each response, with the batch's responses so far
    follow: Callable[[Sequence[GradedTrajectory]], None] = lambda graded: None


class Sampler:
    """Samples responses from the engines' current weights and scores them."""

    def __init__(
        self,
        *,
        fleet: Generator,
        reward_client: RewardClient,
        decode: Decode,
        sampling: SamplingSettings,
        seed: int,
        reward_range: tuple[float, float] = UNIT_RANGE,
        episodes: Episodes | None = None,
    ) -> None:
        """`episodes`: with an environment, generates episodes with the fleet."""
        self._fleet = fleet
        self._episodes = episodes
        self._reward_client = reward_client
        self._decode = decode
        self._sampling = sampling
        self._seed = seed
        self._reward_range = reward_range

    async def sample(self, batch: Batch) -> list[GradedTrajectory]:
        """Return the responses in the order of prompts and samples. Raises errors of generation and
        of `batch.follow`, and RewardOutOfRange; pending work is cancelled then.
        """
        requests = evaluation_requests(batch.prompts, batch.samples, self._seed)
        ended: asyncio.Queue[asyncio.Task] = asyncio.Queue()
        tasks: list[asyncio.Task] = []

        def start(work) -> asyncio.Task:
            tasks.append(asyncio.ensure_future(work))
            tasks[-1].add_done_callback(ended.put_nowait)
            return tasks[-1]

        async def generate() -> None:
            rows = [request for request, _, _ in requests.values()]
            async for burst in generated(
                self._fleet, self._episodes, rows, self._sampling, batch.prompts
            ):
                start(self._grade([(*requests[one.request_id][1:], one) for one in burst]))

        graded: list[GradedTrajectory] = []
        generation = start(generate())
        try:
            while len(graded) < len(requests) or not generation.done():
                task = await ended.get()
                result = task.result()
                for one in result or ():
                    graded.append(one)
                    batch.follow(graded)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        place = {request_id: index for index, request_id in enumerate(requests)}
        return sorted(graded, key=lambda one: place[one.trajectory.request_id])

    async def _grade(
        self, burst: Sequence[tuple[Prompt, int, Trajectory]]
    ) -> list[GradedTrajectory]:
        scored = await score_responses(
            [(prompt, trajectory) for prompt, _, trajectory in burst],
            reward_client=self._reward_client,
            decode=self._decode,
            asks_function=self._episodes is None or self._episodes.asks_reward_function,
        )
        for (prompt, _, _), (_, verdict) in zip(burst, scored, strict=True):
            require_reward_in_range(verdict, prompt, self._reward_range)
        return [
            GradedTrajectory(prompt, sample, trajectory, text, verdict)
            for (prompt, sample, trajectory), (text, verdict) in zip(burst, scored, strict=True)
        ]


def evaluation_requests(
    prompts: Sequence[Prompt], samples: Sequence[int], seed: int
) -> dict[RequestId, tuple[RolloutRequest, Prompt, int]]:
    """Return by request id: the request, its prompt and its sample number. Seeds do not depend on
    the number of samples.
    """
    most = max(samples, default=0)
    requests = build_requests(prompts, most, seed, PURPOSE)
    placed = ((request, *divmod(position, most)) for position, request in enumerate(requests))
    return {
        request.request_id: (request, prompts[index], sample)
        for request, index, sample in placed
        if sample < samples[index]
    }


class Evaluator:
    """Evaluates a run's policy and critic on the held-out prompts."""

    def __init__(
        self,
        held_out: Mapping[str, Sequence[Prompt]],
        *,
        fleet: Generator,
        critic: Critic | None,
        reward_client: RewardClient,
        decode: Decode,
        sampling: SamplingSettings,
        samples_per_prompt: int,
        seed: int,
        reward_range: tuple[float, float] = UNIT_RANGE,
        shaped: Shaping = unshaped,
        episodes: Episodes | None = None,
        max_error_rate: float = 1.0,
    ) -> None:
        """`shaped` gives the reward that the critic learns from. `max_error_rate`:
        reward.max_error_rate.
        """
        self._shaped = shaped
        self._prompts = [prompt for prompts in held_out.values() for prompt in prompts]
        self._critic = critic
        self._sampler = Sampler(
            fleet=fleet,
            reward_client=reward_client,
            decode=decode,
            sampling=sampling,
            seed=seed,
            reward_range=reward_range,
            episodes=episodes,
        )
        self._best_reward = reward_range[1]
        self._max_error_rate = max_error_rate
        self._k = samples_per_prompt
        self._seed = seed

    @property
    def is_empty(self) -> bool:
        return not self._prompts

    async def evaluate(self, step: int, policy_version: int) -> EvalReport:
        """Evaluate the engines' current weights, and the critic's V(x) on the same prompts. Raises
        UserError when too many responses could not be scored.
        """
        started = time.perf_counter()
        values = asyncio.ensure_future(self._values())
        try:
            graded = await self._sampler.sample(Batch(self._prompts, [self._k] * len(self._prompts)))
            known = await values
        finally:
            values.cancel()  # a failed evaluation: no other code awaits them
        self._require_few_errors(step, graded)
        value_of = {prompt.id: value.value for prompt, value in zip(self._prompts, known, strict=False)}
        return evaluate(
            [one.response() for one in graded],
            k=self._k,
            step=step,
            policy_version=policy_version,
            values=value_of,
            shaped=self._shaped,
            best_reward=self._best_reward,
            seconds=time.perf_counter() - started,
            seed=bootstrap_seed(self._seed),
        )

    def _require_few_errors(self, step: int, graded: Sequence[GradedTrajectory]) -> None:
        """Before the first step the limit is that of a step, because a stop costs nothing yet.
        Later the steps themselves are held to it, and an evaluation only to not being all errors.
        """
        failed = [one for one in graded if one.verdict.reward is None]
        if failed and (step == 0 or len(failed) == len(graded)):
            last = f"prompt {failed[-1].prompt.id}: {failed[-1].verdict.reason}"
            where = f"evaluation at step {step}"
            require_few_errors(where, len(failed), len(graded), self._max_error_rate, last)

    async def _values(self) -> list[PromptValue]:
        """Return V of each prompt; empty without a critic."""
        if self._critic is None:
            return []
        return await self._critic.values(
            TokenRows.of([prompt.critic_token_ids for prompt in self._prompts])
        )


def bootstrap_seed(seed: int) -> int:
    """The seed of an evaluation's confidence intervals, from the run's."""
    return derive_seed(seed, "bootstrap") % 2**32
