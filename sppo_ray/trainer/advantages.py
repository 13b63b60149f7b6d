"""Turns a cohort's outcomes into minibatches with advantages, as early as the algorithm allows.

needs: sample (sppo, remax)     a minibatch is ready when its last sample is scored
needs: group (grpo, rloo)       the same, with whole groups; dynamic sampling drops groups whose
                                rewards are all equal and draws further prompts
needs: step (ppo, sao, spo,     all minibatches are ready when the step's last sample is scored,
  reinforce, reinforce++)       and valued by a token critic
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sppo_ray.algorithms.base import RewardedSample
from sppo_ray.algorithms.shaping import informative
from sppo_ray.algorithms.tracker import PromptTracker
from sppo_ray.config import RunConfig
from sppo_ray.models.critic_output import CriticLoss, logit
from sppo_ray.protocols import Critic, PromptSource
from sppo_ray.rewards.error_rate import require_few_errors
from sppo_ray.rollout.pipeline import RolloutBatch, SamplePipeline, UnscoredTrajectory
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.updates import action_values
from sppo_ray.types import NO_TOKENS, PromptValue, ScoredTrajectory, TrainingSample, Trajectory


class StalenessViolated(Exception):
    """A sample is older than max_staleness allows. It is a bug in the loop or a wrong version."""


@dataclass(slots=True)
class StepStats:
    """Counts of a step's generation and dynamic sampling."""

    response_tokens: int = 0  # generated tokens, including greedy, unscored and dropped responses
    responses: int = 0  # requested responses, in all draws
    reward_errors: int = 0
    groups: int = 0  # groups checked by dynamic sampling
    groups_dropped: int = 0
    draws: int = 1

    def metrics(self) -> dict[str, float]:
        figures: dict[str, float] = {"rollout/tokens": self.response_tokens}
        if self.groups:
            figures |= {"groups/draws": self.draws, "groups/dropped_rate": self.groups_dropped / self.groups}
        return figures


class AdvantageEstimator:
    """Computes the minibatches of a run's steps."""

    def __init__(
        self,
        config: RunConfig,
        *,
        critic: Critic | None,
        pipeline: SamplePipeline,
        prompts: PromptSource,
        recorder: Recorder,
        tracker: PromptTracker | None = None,
    ) -> None:
        """Dynamic sampling draws further prompts from `prompts` and dispatches them to
        `pipeline`.
        """
        self._tracker = tracker
        self._config = config
        self._spec = config.spec
        self._critic = critic
        self._pipeline = pipeline
        self._prompts = prompts
        self._recorder = recorder

    async def minibatches(
        self, cohort: RolloutBatch, *, policy_version: int, critic_version: int, tally: StepStats
    ) -> AsyncIterator[list[TrainingSample]]:
        """Yield the step's minibatches, without unscored responses, and update `tally`.

        Raises UserError when too many responses could not be scored, StalenessViolated, and the
        errors of the cohort.
        """
        parts = self._informative(cohort, policy_version, tally)
        if self._config.needs == "step":
            waiting = [part async for part in parts]
            samples = iter(await self._estimate(list(itertools.chain(*waiting)), critic_version))
            for part in waiting:
                yield list(itertools.islice(samples, len(part)))
            return
        async for part in parts:
            yield await self._estimate(part, critic_version)

    async def _informative(
        self, cohort: RolloutBatch, version: int, tally: StepStats
    ) -> AsyncIterator[list[ScoredTrajectory]]:
        rounds = self._config.algorithm.sampling_rounds
        if rounds == 1:
            async for part in self._scored(cohort, version, tally):
                yield part
            return
        data = self._config.data
        # Count groups, not samples, because an unscored sample only makes its group smaller.
        per_minibatch, missing = data.minibatch_size // data.samples_per_prompt, data.prompts_per_step
        kept: list[list[ScoredTrajectory]] = []
        for draw in range(1, rounds + 1):
            async for part in self._scored(cohort, version, tally):
                kept += self._with_spread(part, tally)
                while len(kept) >= per_minibatch and missing:
                    yield list(itertools.chain(*kept[:per_minibatch]))
                    kept, missing = kept[per_minibatch:], missing - per_minibatch
            if not missing or draw == rounds:
                break
            # Draw the missing prompts, plus the expected number of dropped ones.
            expected = (missing - len(kept)) * tally.groups / max(1, tally.groups - tally.groups_dropped)
            cohort = self._redraw(cohort.step, draw, min(data.prompts_per_step, round(expected)))
            tally.draws += 1
        if kept and missing:
            yield list(itertools.chain(*kept))

    def _redraw(self, step: int, draw: int, count: int) -> RolloutBatch:
        """Dispatch further prompts for a step, from its part of the prompt stream."""
        prompts = self._prompts.cohort(step * self._config.prompt_rounds + draw)[:count]
        return self._pipeline.dispatch(step, prompts, self._config.data.samples_per_prompt, draw=draw)

    def _with_spread(
        self, part: Sequence[ScoredTrajectory], tally: StepStats
    ) -> list[list[ScoredTrajectory]]:
        """Return the groups of `part` whose rewards differ. `part` holds whole groups."""
        kept: list[list[ScoredTrajectory]] = []
        for _, members in itertools.groupby(part, key=lambda scored: scored.group):
            group = list(members)
            tally.groups += 1
            if informative([scored.reward for scored in group]):
                kept.append(group)
            else:
                tally.groups_dropped += 1
        return kept

    async def _scored(
        self, cohort: RolloutBatch, version: int, tally: StepStats
    ) -> AsyncIterator[list[ScoredTrajectory]]:
        """Yield the scored samples of each minibatch as soon as all its responses are scored."""
        unscored: list[UnscoredTrajectory] = []
        tally.responses += cohort.size
        while cohort.remaining:
            with self._recorder.stage("generate-wait"):
                outcomes = await cohort.take(self._config.data.minibatch_size)
            unscored.extend(outcome for outcome in outcomes if isinstance(outcome, UnscoredTrajectory))
            self._require_few_errors(cohort.step, unscored, tally)
            scored = [outcome for outcome in outcomes if not isinstance(outcome, UnscoredTrajectory)]
            for outcome in scored:
                self._require_fresh(cohort.step, version, outcome.trajectory)
            if scored:
                yield scored
        tally.reward_errors += len(unscored)
        tally.response_tokens += cohort.generated_tokens
        self._recorder.reward_errors(unscored)

    async def _estimate(
        self, scored: Sequence[ScoredTrajectory], critic_version: int
    ) -> list[TrainingSample]:
        if not scored:
            return []
        values = await self._token_values(scored)
        return estimate(self._with_history(scored), values, self._config, critic_version=critic_version)

    def _with_history(self, scored: Sequence[ScoredTrajectory]) -> Sequence[ScoredTrajectory]:
        """Set the history of each sample's prompt; unchanged without a tracker."""
        tracker = self._tracker
        if tracker is None:
            return scored
        values = [None if one.value is None else one.value.value for one in scored]
        return [
            replace(one, history=tracker.history(one.prompt.id, value))
            for one, value in zip(scored, values, strict=True)
        ]

    async def _token_values(self, scored: Sequence[ScoredTrajectory]) -> list[np.ndarray]:
        if self._spec.critic != "token" or self._critic is None:
            return [NO_TOKENS] * len(scored)
        with self._recorder.stage("values"):
            values = await action_values(self._critic, scored)
        return [row.astype(np.float64) for row in values]

    def _require_fresh(self, step: int, version: int, trajectory: Trajectory) -> None:
        staleness = version - trajectory.policy_version
        if not 0 <= staleness <= self._config.loop.max_staleness:
            raise StalenessViolated(
                f"step {step}: {trajectory.worker} sampled {trajectory.request_id} at policy version "
                f"{trajectory.policy_version}, the learner is at {version}: staleness {staleness} is outside "
                f"[0, {self._config.loop.max_staleness}]"
            )

    def _require_few_errors(
        self, step: int, unscored: Sequence[UnscoredTrajectory], tally: StepStats
    ) -> None:
        """Raise UserError when too many responses of the step are unscored.

        The limit applies to the whole step, because a further draw may be a single prompt.
        `unscored` are the unscored responses of the current cohort.
        """
        last = f"prompt {unscored[-1].prompt.id}: {unscored[-1].reason}" if unscored else ""
        require_few_errors(
            f"step {step}",
            tally.reward_errors + len(unscored),
            tally.responses,
            self._config.reward.max_error_rate,
            last,
        )


def estimate(
    scored: Sequence[ScoredTrajectory],
    token_values: Sequence[np.ndarray],
    config: RunConfig,
    *,
    critic_version: int,
) -> list[TrainingSample]:
    """Compute advantages, returns and shaped rewards. Pure.

    `scored` are samples that the algorithm `needs` together. `token_values` are the values of a
    token critic of version `critic_version`, [action tokens] float64 per sample; NO_TOKENS
    without a token critic.
    """
    spec, settings = config.spec, config.algorithm
    rewarded = [_rewarded(item, values, config) for item, values in zip(scored, token_values, strict=True)]
    advantages = spec.advantages(rewarded, settings)
    returns = spec.returns(rewarded, settings) if spec.returns else [NO_TOKENS] * len(rewarded)
    loss: CriticLoss = "bce" if config.critic_needs_probabilities else "mse"
    samples = []
    for item, known, advantage, targets in zip(scored, rewarded, advantages, returns, strict=True):
        valued = _valued(item, known.token_values, loss, critic_version)
        samples.append(TrainingSample(valued, advantage, known.reward, known.token_values, targets))
    return samples


def _rewarded(scored: ScoredTrajectory, token_values: np.ndarray, config: RunConfig) -> RewardedSample:
    length, baseline = scored.trajectory.num_actions, scored.baseline
    return RewardedSample(
        group=scored.group,
        reward=config.shaped(scored.reward, length),
        num_tokens=length,
        value=None if scored.value is None else scored.value.value,
        token_values=token_values,
        baseline_reward=None
        if baseline is None
        else config.shaped(baseline.reward, baseline.response_tokens),
        history=scored.history,
    )


def _valued(
    scored: ScoredTrajectory, token_values: np.ndarray, loss: CriticLoss, critic_version: int
) -> ScoredTrajectory:
    """Set the prompt's value to the token critic's value before the first response token."""
    if not len(token_values):
        return scored
    first = float(token_values[0])
    return replace(scored, value=PromptValue(logit(first) if loss == "bce" else first, first, critic_version))
