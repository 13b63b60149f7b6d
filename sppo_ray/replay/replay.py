"""Repeat recorded steps with a real learner and critic, without engines, and collect the results of
the last one.

    start (checkpoint or starting weights) --> step c + 1 --> ... --> step k, the target
                                                  |                      |
                              policy's log-probs and critic's values     '--> advantages, metrics, weights
                              of the TARGET's samples, as soon as the
                              versions that they saw are reached

It reads only external inputs from the records: the sampled tokens with the engine's log-probs, the
rewards, and the samples of each minibatch. Updates use the recorded advantages, so that a wrong
advantage appears only as that, not as a difference in everything after it.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sppo_ray.config import RunConfig
from sppo_ray.data.packing import pack, unpack_logprobs
from sppo_ray.protocols import Critic, Learner, Reference
from sppo_ray.replay.records import RecordedStep
from sppo_ray.rundir.weights_log import WeightRecord
from sppo_ray.trainer.advantages import estimate
from sppo_ray.trainer.updates import action_values, update_critic, update_metrics
from sppo_ray.types import NO_TOKENS, Minibatch, PromptValue, TokenRows, TrainingSample


@dataclass(slots=True)
class Rederived:
    """The results of a replay. Lists of samples are in the target's order."""

    # from the start's version to the target's
    weights: dict[int, WeightRecord] = field(default_factory=dict)
    # by policy version: [action tokens] float32; empty if the sample did not use it
    logprobs: dict[int, list[np.ndarray]] = field(default_factory=dict)
    # prompt critic, by `ScoredTrajectory.group`
    values: dict[str, PromptValue] = field(default_factory=dict)
    # token critic: [action tokens] per sample
    token_values: list[np.ndarray] = field(default_factory=list)
    # with advantages from the recorded values and rewards
    samples: list[TrainingSample] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)  # of the target's updates


class Replay:
    """One replay. `learner` and `critic` hold the start's versions, `reference` the starting
    weights.
    """

    def __init__(
        self,
        config: RunConfig,
        target: RecordedStep,
        *,
        learner: Learner,
        critic: Critic | None,
        reference: Reference | None,
    ) -> None:
        self._config = config
        self._target = target
        self._learner = learner
        self._critic = critic
        self._reference = reference
        self._critic_version = 0
        self._found = Rederived()

    async def run(
        self,
        steps: Iterable[RecordedStep],
        *,
        policy_version: int,
        critic_version: int,
        report: Callable[[str], None],
    ) -> Rederived:
        """Repeat `steps`, ending with the target; the first made version `policy_version` + 1."""
        self._critic_version = critic_version
        await self._note_weights(policy_version)
        for step in steps:
            report(
                f"step {step.step} of {self._target.step}: {len(step.samples)} samples, "
                f"{len(step.minibatches)} updates"
            )
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
        # all of them before the step's first update
        if self._config.algorithm.old_logprobs == "learner":
            packed = [await self._learner.recompute_logprobs(minibatch) for minibatch in packed]
        if self._reference is not None:
            packed = [await self._reference.logprobs(minibatch) for minibatch in packed]
        return [dict(await self._learner.update(minibatch)) for minibatch in packed]

    async def _train_critic(self, step: RecordedStep) -> list[dict[str, float]]:
        if self._critic is None:
            return []
        found = []
        for minibatch in step.minibatches:
            for _ in range(self._config.critic.updates_per_minibatch):
                await self._note_values(self._critic)
                found.append(dict(await update_critic(self._config, self._critic, minibatch)))
                self._critic_version += 1
        return found

    async def _note_weights(self, version: int) -> None:
        published = await self._learner.publish(version)
        digest, probe = published.manifest.digest, published.probe_logprobs
        self._found.weights[version] = WeightRecord(version, digest, tuple(probe), self._config.loop.steps)

    async def _note_logprobs(self, version: int) -> None:
        """Record the current policy's log-probs of those target samples to which it may have
        contributed a token.
        """
        rows: list[np.ndarray] = []
        for minibatch in self._target.minibatches:
            trajectories = [sample.scored.trajectory for sample in minibatch]
            saw_it = [one.policy_version <= version <= one.policy_version_end for one in trajectories]
            if not any(saw_it):
                rows += [NO_TOKENS] * len(minibatch)
                continue
            recomputed = await self._learner.recompute_logprobs(self._pack(minibatch))
            own = unpack_logprobs(recomputed, minibatch, self._config.learner.max_tokens_per_microbatch)
            rows += [row if saw else NO_TOKENS for row, saw in zip(own, saw_it, strict=True)]
        if any(len(row) for row in rows):
            self._found.logprobs[version] = rows

    async def _note_values(self, critic: Critic) -> None:
        """Record the prompt critic's values of the target's prompts that were valued at its current
        version: in one call and in the order of the prompts, as at dispatch.
        """
        if self._config.spec.critic != "prompt":
            return
        scored = [sample.scored for sample in self._target.samples]
        prompts = {
            one.group: one.prompt.critic_token_ids
            for one in sorted(scored, key=lambda one: one.trajectory.request_id.index)
            if one.value is not None and one.value.critic_version == self._critic_version
        }
        missing = {group: ids for group, ids in prompts.items() if group not in self._found.values}
        if missing:
            values = await critic.values(TokenRows.of(list(missing.values())))
            self._found.values |= dict(zip(missing, values, strict=True))

    async def _note_estimates(self) -> None:
        """Record the token critic's values, and the advantages from the recorded values."""
        samples = self._target.samples
        if self._critic is not None:
            await self._note_values(self._critic)
            if self._config.spec.critic == "token":
                scored = [sample.scored for sample in samples]
                self._found.token_values = await action_values(self._critic, scored)
        judged_together = [samples] if self._config.needs == "step" else self._target.minibatches
        self._found.samples = [sample for part in judged_together for sample in self._estimated(part)]

    def _estimated(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        scored, token_values = (
            [sample.scored for sample in samples],
            [sample.token_values for sample in samples],
        )
        return estimate(scored, token_values, self._config, critic_version=self._critic_version)

    def _pack(self, samples: Sequence[TrainingSample]) -> Minibatch:
        return pack(samples, self._config.learner.ranks, self._config.learner.max_tokens_per_microbatch)
