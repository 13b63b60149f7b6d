"""Held-out evaluation through the run's own engines, verifier and critic.

The same prompts with the same seeds every time, so that two evaluations differ by the policy alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from sppo_ray.seeding import derive_seed
from sppo_ray.trainer.evaluation import EvalReport, GradedResponse, evaluate
from sppo_ray.trainer.interfaces import Critic, Scorer, ScoreRequest
from sppo_ray.trainer.pipeline import Decode, Generator, build_requests, require_reward_in_range
from sppo_ray.types import Prompt, SamplingSettings, Trajectory


class Evaluator:
    """Samples k responses to each held-out prompt and grades them."""

    def __init__(
        self,
        held_out: Mapping[str, Sequence[Prompt]],
        *,
        fleet: Generator,
        critic: Critic,
        scorer: Scorer,
        decode: Decode,
        sampling: SamplingSettings,
        samples_per_prompt: int,
        seed: int,
    ) -> None:
        self._prompts = [prompt for prompts in held_out.values() for prompt in prompts]
        self._fleet = fleet
        self._critic = critic
        self._scorer = scorer
        self._decode = decode
        self._sampling = sampling
        self._k = samples_per_prompt
        self._seed = seed

    @property
    def is_empty(self) -> bool:
        return not self._prompts

    async def evaluate(self, step: int, policy_version: int) -> EvalReport:
        """Evaluate the weights that the engines serve now, and the critic's V(x) on the same prompts."""
        started = time.perf_counter()
        values = asyncio.ensure_future(self._critic.values([prompt.critic_token_ids for prompt in self._prompts]))
        requests = build_requests(self._prompts, self._k, self._seed, "evaluation")
        position_of = {request.request_id: position for position, request in enumerate(requests)}
        grading = []
        async for trajectory in self._fleet.generate(requests, self._sampling):
            prompt_index, sample = divmod(position_of[trajectory.request_id], self._k)
            grading.append(asyncio.ensure_future(self._grade(self._prompts[prompt_index], sample, trajectory)))
        graded = await asyncio.gather(*grading)
        value_of = {prompt.id: value.value for prompt, value in zip(self._prompts, await values, strict=True)}
        return evaluate(
            graded,
            k=self._k,
            step=step,
            policy_version=policy_version,
            values=value_of,
            seconds=time.perf_counter() - started,
            seed=derive_seed(self._seed, "bootstrap") % 2**32,
        )

    async def _grade(self, prompt: Prompt, sample: int, trajectory: Trajectory) -> GradedResponse:
        text = self._decode(trajectory.response_ids)
        verdict = await self._scorer.score(ScoreRequest(text, prompt.ground_truth, prompt.source, prompt.text, prompt.extra))
        require_reward_in_range(verdict, prompt)
        truncated = trajectory.finish_reason == "length"
        return GradedResponse(prompt.id, prompt.source, sample, verdict.reward, text, len(trajectory.response_ids), truncated)
