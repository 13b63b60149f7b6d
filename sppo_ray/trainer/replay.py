"""Takes recorded steps again with a real learner and critic, and notes what comes out of the last one. No engine takes part.

    start (checkpoint or starting weights) --> step c + 1 --> ... --> step k, the target
                                                  |                      |
                              policy's log-probs and critic's values     '--> advantages, metrics, weights
                              of the TARGET's samples, as soon as the
                              versions that they saw are reached

Nothing that a run computed is taken from its records but what came from outside: the sampled tokens with the engine's log-probs,
the rewards, and which samples shared a minibatch. An update is made of the recorded advantages, so that a wrong one shows where
it arose and not in everything after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sppo_ray.config import RunConfig
from sppo_ray.data.batching import pack, unpack_logprobs
from sppo_ray.trainer.estimation import estimate
from sppo_ray.trainer.interfaces import Critic, Learner, Reference
from sppo_ray.trainer.replay_records import RecordedStep
from sppo_ray.trainer.updates import update_critic, update_metrics
from sppo_ray.trainer.weight_log import WeightRecord
from sppo_ray.types import Minibatch, PromptValue, TrainingSample

Logprobs = tuple[float, ...]


@dataclass(slots=True)
class Rederived:
    """What a replay found. Lists of samples are in the target's order."""

    weights: dict[int, WeightRecord] = field(default_factory=dict)  # from the start's version to the target's
    logprobs: dict[int, list[Logprobs]] = field(default_factory=dict)  # by policy version; () where the sample did not see it
    values: dict[str, PromptValue] = field(default_factory=dict)  # prompt critic, by `ScoredTrajectory.group`
    token_values: list[tuple[float, ...]] = field(default_factory=list)  # token critic
    samples: list[TrainingSample] = field(default_factory=list)  # with advantages of the recorded values and rewards
    metrics: dict[str, float] = field(default_factory=dict)  # of the target's updates


class Replay:
    """One replay. `learner` and `critic` are at the start's versions, `reference` at the starting weights."""

    def __init__(
        self, config: RunConfig, target: RecordedStep, *, learner: Learner, critic: Critic | None, reference: Reference | None
    ) -> None:
        self._config = config
        self._target = target
        self._learner = learner
        self._critic = critic
        self._reference = reference
        self._critic_version = 0
        self._found = Rederived()

    async def run(
        self, steps: Iterable[RecordedStep], *, policy_version: int, critic_version: int, report: Callable[[str], None]
    ) -> Rederived:
        """Take `steps` again, the last of which is the target; the first made version `policy_version` + 1."""
        self._critic_version = critic_version
        await self._note_weights(policy_version)
        for step in steps:
            report(f"step {step.step} of {self._target.step}: {len(step.samples)} samples, {len(step.minibatches)} updates")
            await self._note_logprobs(step.step - 1)
            if step.step == self._target.step:
                await self._note_estimates()
            policy, critic = await asyncio.gather(self._train_policy(step), self._train_critic(step))
            self._found.metrics = update_metrics(policy, critic)
            await self._note_weights(step.step)
        return self._found

    async def _train_policy(self, step: RecordedStep) -> list[dict[str, float]]:
        if step.step <= self._config.critic_warmup_steps:
            return []
        packed = [self._pack(minibatch) for minibatch in step.minibatches]
        if self._config.algorithm.old_logprobs == "learner":  # all of them before the step's first update
            packed = [await self._learner.recompute_logprobs(minibatch) for minibatch in packed]
        if self._reference is not None:
            packed = [await self._reference.logprobs(minibatch) for minibatch in packed]
        return [dict(await self._learner.update(minibatch)) for minibatch in packed]

    async def _train_critic(self, step: RecordedStep) -> list[dict[str, float]]:
        if self._critic is None:
            return []
        found = []
        for minibatch in step.minibatches:
            await self._note_values(self._critic)
            found.append(dict(await update_critic(self._config, self._critic, minibatch)))
            self._critic_version += 1
        return found

    async def _note_weights(self, version: int) -> None:
        published = await self._learner.publish(version)
        digest, probe = published.manifest.digest, published.probe_logprobs
        self._found.weights[version] = WeightRecord(version, digest, tuple(probe), self._config.loop.steps)

    async def _note_logprobs(self, version: int) -> None:
        """The present policy's log-probs of the target's samples of which it may have sampled a token."""
        rows: list[Logprobs] = []
        for minibatch in self._target.minibatches:
            trajectories = [sample.scored.trajectory for sample in minibatch]
            saw_it = [one.policy_version <= version <= one.policy_version_end for one in trajectories]
            if not any(saw_it):
                rows += [()] * len(minibatch)
                continue
            recomputed = await self._learner.recompute_logprobs(self._pack(minibatch))
            own = unpack_logprobs(recomputed, minibatch, self._config.learner.max_tokens_per_microbatch)
            rows += [logprobs if saw else () for logprobs, saw in zip(own, saw_it, strict=True)]
        if any(rows):
            self._found.logprobs[version] = rows

    async def _note_values(self, critic: Critic) -> None:
        """The prompt critic's values of the target's prompts that were valued at its present version: all of them in one call and
        in the order of the prompts, as when they were dispatched."""
        if self._config.spec.critic != "prompt":
            return
        scored = [sample.scored for sample in self._target.samples]
        prompts = {
            one.group: one.prompt.critic_token_ids
            for one in scored
            if one.value is not None and one.value.critic_version == self._critic_version
        }
        groups = sorted(prompts.keys() - self._found.values.keys(), key=lambda group: int(group.rpartition("/")[2]))
        if groups:
            values = await critic.values([prompts[group] for group in groups])
            self._found.values |= dict(zip(groups, values, strict=True))

    async def _note_estimates(self) -> None:
        """The token critic's values, and the advantages of what was recorded."""
        samples = self._target.samples
        if self._critic is not None:
            await self._note_values(self._critic)
            if self._config.spec.critic == "token":
                scored = [sample.scored for sample in samples]
                prompts, responses = [s.prompt.token_ids for s in scored], [s.trajectory.response_ids for s in scored]
                self._found.token_values = await self._critic.token_values(prompts, responses)
        judged_together = [samples] if self._config.spec.needs == "step" else self._target.minibatches
        self._found.samples = [sample for part in judged_together for sample in self._estimated(part)]

    def _estimated(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        scored, token_values = [sample.scored for sample in samples], [sample.token_values for sample in samples]
        return estimate(scored, token_values, self._config, critic_version=self._critic_version)

    def _pack(self, samples: Sequence[TrainingSample]) -> Minibatch:
        return pack(samples, self._config.learner.ranks, self._config.learner.max_tokens_per_microbatch)
