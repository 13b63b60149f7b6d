"""Held-out evaluation through a run's own engines and verifier, inside training and for `sppo-ray eval`.

    prompts, k --requests with fixed seeds--> fleet.generate --trajectory--> scorer.score --> GradedTrajectory

The same prompts with the same seeds every time, so that two evaluations differ by the policy alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from sppo_ray.algorithms.shaping import Shaping, unshaped
from sppo_ray.seeding import derive_seed
from sppo_ray.trainer.evaluation import EvalReport, GradedResponse, evaluate
from sppo_ray.trainer.interfaces import Critic, Scorer, ScoreRequest
from sppo_ray.trainer.pipeline import UNIT_RANGE, Decode, Generator, build_requests, require_reward_in_range
from sppo_ray.types import Prompt, PromptValue, RolloutRequest, SamplingSettings, Trajectory, Verdict

PURPOSE = "evaluation"  # part of request ids and of the seeds


@dataclass(frozen=True, slots=True)
class GradedTrajectory:
    """One response to a held-out prompt with everything that is known of it."""

    prompt: Prompt
    sample: int  # [0, k) within its prompt
    trajectory: Trajectory
    text: str
    verdict: Verdict

    def response(self) -> GradedResponse:
        """What the figures need of it."""
        return GradedResponse(
            prompt_id=self.prompt.id,
            source=self.prompt.source,
            sample_index=self.sample,
            reward=self.verdict.reward,
            response_text=self.text,
            num_tokens=len(self.trajectory.response_ids),
            truncated=self.trajectory.finish_reason == "length",
            answer=self.verdict.answer,
        )


class Grader:
    """Samples responses from the weights that the engines serve now, and has them graded."""

    def __init__(
        self,
        *,
        fleet: Generator,
        scorer: Scorer,
        decode: Decode,
        sampling: SamplingSettings,
        seed: int,
        reward_range: tuple[float, float] = UNIT_RANGE,
    ) -> None:
        self._fleet = fleet
        self._scorer = scorer
        self._decode = decode
        self._sampling = sampling
        self._seed = seed
        self._reward_range = reward_range

    async def graded(self, prompts: Sequence[Prompt], samples: Sequence[int]) -> AsyncIterator[GradedTrajectory]:
        """`samples[i]` responses to `prompts[i]`, each as soon as its verdict is there. Close it (`aclosing`) to stop early.

        Raises what generation raises, and RewardOutOfRange; whatever is under way is dropped then.
        """
        requests = evaluation_requests(prompts, samples, self._seed)
        ended: asyncio.Queue[asyncio.Task] = asyncio.Queue()
        tasks: list[asyncio.Task] = []

        def start(work) -> asyncio.Task:
            tasks.append(asyncio.ensure_future(work))
            tasks[-1].add_done_callback(ended.put_nowait)
            return tasks[-1]

        async def generate() -> None:
            async for trajectory in self._fleet.generate([request for request, _, _ in requests.values()], self._sampling):
                _, prompt, sample = requests[trajectory.request_id]
                start(self._grade(prompt, sample, trajectory))

        generation = start(generate())
        try:
            for _ in range(1 + len(requests)):
                task = await ended.get()
                result = task.result()
                if task is not generation:
                    yield result
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _grade(self, prompt: Prompt, sample: int, trajectory: Trajectory) -> GradedTrajectory:
        text = self._decode(trajectory.response_ids)
        verdict = await self._scorer.score(ScoreRequest(text, prompt.ground_truth, prompt.source, prompt.text, prompt.extra))
        require_reward_in_range(verdict, prompt, self._reward_range)
        return GradedTrajectory(prompt, sample, trajectory, text, verdict)


def evaluation_requests(
    prompts: Sequence[Prompt], samples: Sequence[int], seed: int
) -> dict[str, tuple[RolloutRequest, Prompt, int]]:
    """By request id: the request, its prompt and the number of its sample. Seeds do not depend on how many samples are drawn."""
    most = max(samples, default=0)
    requests = build_requests(prompts, most, seed, PURPOSE)
    placed = ((request, *divmod(position, most)) for position, request in enumerate(requests))
    return {request.request_id: (request, prompts[index], sample) for request, index, sample in placed if sample < samples[index]}


class Evaluator:
    """Evaluates a run's policy, and the critic's V(x) against it, on the held-out prompts."""

    def __init__(
        self,
        held_out: Mapping[str, Sequence[Prompt]],
        *,
        fleet: Generator,
        critic: Critic | None,
        scorer: Scorer,
        decode: Decode,
        sampling: SamplingSettings,
        samples_per_prompt: int,
        seed: int,
        reward_range: tuple[float, float] = UNIT_RANGE,
        shaped: Shaping = unshaped,
    ) -> None:
        """`shaped` is what the critic learns of a reward."""
        self._shaped = shaped
        self._prompts = [prompt for prompts in held_out.values() for prompt in prompts]
        self._critic = critic
        self._grader = Grader(fleet=fleet, scorer=scorer, decode=decode, sampling=sampling, seed=seed, reward_range=reward_range)
        self._best_reward = reward_range[1]
        self._k = samples_per_prompt
        self._seed = seed

    @property
    def is_empty(self) -> bool:
        return not self._prompts

    async def evaluate(self, step: int, policy_version: int) -> EvalReport:
        """Evaluate the weights that the engines serve now, and the critic's V(x) on the same prompts."""
        started = time.perf_counter()
        values = asyncio.ensure_future(self._values())
        try:
            async with contextlib.aclosing(self._grader.graded(self._prompts, [self._k] * len(self._prompts))) as stream:
                responses = [graded.response() async for graded in stream]
            known = await values
        finally:
            values.cancel()  # of a failed evaluation; nobody else waits for them
        value_of = {prompt.id: value.value for prompt, value in zip(self._prompts, known, strict=False)}
        return evaluate(
            responses,
            k=self._k,
            step=step,
            policy_version=policy_version,
            values=value_of,
            shaped=self._shaped,
            best_reward=self._best_reward,
            seconds=time.perf_counter() - started,
            seed=bootstrap_seed(self._seed),
        )

    async def _values(self) -> list[PromptValue]:
        """V of each prompt; none without a critic."""
        if self._critic is None:
            return []
        return await self._critic.values([prompt.critic_token_ids for prompt in self._prompts])


def bootstrap_seed(seed: int) -> int:
    """The seed of an evaluation's confidence intervals, from the run's."""
    return derive_seed(seed, "bootstrap") % 2**32
