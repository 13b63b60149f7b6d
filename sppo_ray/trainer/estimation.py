"""From a cohort's outcomes to minibatches with advantages, each as early as the algorithm allows.

sppo, remax   (needs: sample)   a minibatch leaves when its last sample is scored
grpo, rloo    (needs: group)    likewise, a minibatch being whole groups; with dynamic sampling, groups without spread are
                                left out and further prompts are drawn
ppo, ...      (needs: step)     all samples are scored (and valued) first, then the minibatches leave together
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from sppo_ray.algorithms.base import RewardedSample
from sppo_ray.algorithms.shaping import informative
from sppo_ray.config import RunConfig
from sppo_ray.errors import UserError
from sppo_ray.models.critic_output import CriticLoss, logit
from sppo_ray.trainer.interfaces import Critic
from sppo_ray.trainer.pipeline import Cohort, UnscoredTrajectory
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.types import PromptValue, ScoredTrajectory, TrainingSample, Trajectory

Redraw = Callable[[int, int, int], Cohort]
"""(step, draw, prompts) -> a further cohort of that step."""


class StalenessViolated(Exception):
    """A sample is older than max_staleness allows: a bug of the loop or of an engine's version."""


@dataclass(slots=True)
class StepTally:
    """What it took to get a step's samples."""

    response_tokens: int = 0  # generated: greedy baselines, unscored and dropped samples included
    responses: int = 0  # asked for, in all draws
    reward_errors: int = 0
    groups: int = 0  # judged by dynamic sampling
    groups_dropped: int = 0
    draws: int = 1

    def metrics(self) -> dict[str, float]:
        figures: dict[str, float] = {"rollout/tokens": self.response_tokens}
        if self.groups:
            figures |= {"groups/draws": self.draws, "groups/dropped_rate": self.groups_dropped / self.groups}
        return figures


class AdvantageEstimator:
    """Makes the minibatches of one run's steps."""

    def __init__(self, config: RunConfig, critic: Critic | None, recorder: Recorder, redraw: Redraw) -> None:
        self._config = config
        self._spec = config.spec
        self._critic = critic
        self._recorder = recorder
        self._redraw = redraw

    async def minibatches(
        self, cohort: Cohort, *, policy_version: int, critic_version: int, tally: StepTally
    ) -> AsyncIterator[list[TrainingSample]]:
        """The step's minibatches; an unscored response is missing from its own. Fills in `tally`.

        Raises UserError when too many responses could not be scored, StalenessViolated, and what the cohort raises.
        """
        parts = self._informative(cohort, policy_version, tally)
        if self._spec.needs == "step":
            waiting = [part async for part in parts]
            samples = iter(await self._estimate(list(itertools.chain(*waiting)), critic_version))
            for part in waiting:
                yield list(itertools.islice(samples, len(part)))
            return
        async for part in parts:
            yield await self._estimate(part, critic_version)

    async def _informative(self, cohort: Cohort, version: int, tally: StepTally) -> AsyncIterator[list[ScoredTrajectory]]:
        dynamic = getattr(self._config.algorithm, "dynamic_sampling", None)
        if dynamic is None:
            async for part in self._scored(cohort, version, tally):
                yield part
            return
        data = self._config.data
        # Counted in groups and not in samples: one that could not be scored is missing from its group and from nothing else.
        per_minibatch, missing = data.minibatch_size // data.samples_per_prompt, data.prompts_per_step
        kept: list[list[ScoredTrajectory]] = []
        for draw in range(1, dynamic.max_rounds + 1):
            async for part in self._scored(cohort, version, tally):
                kept += self._with_spread(part, tally)
                while len(kept) >= per_minibatch and missing:
                    yield list(itertools.chain(*kept[:per_minibatch]))
                    kept, missing = kept[per_minibatch:], missing - per_minibatch
            if not missing or draw == dynamic.max_rounds:
                break
            # As many prompts again as are missing, and for those that will be dropped, in proportion to the last ones.
            expected = (missing - len(kept)) * tally.groups / max(1, tally.groups - tally.groups_dropped)
            cohort = self._redraw(cohort.step, draw, min(data.prompts_per_step, round(expected)))
            tally.draws += 1
        if kept and missing:
            yield list(itertools.chain(*kept))

    def _with_spread(self, part: Sequence[ScoredTrajectory], tally: StepTally) -> list[list[ScoredTrajectory]]:
        """The groups of `part` that can teach something; it holds whole groups."""
        kept: list[list[ScoredTrajectory]] = []
        for _, members in itertools.groupby(part, key=lambda scored: scored.group):
            group = list(members)
            tally.groups += 1
            if informative([scored.reward for scored in group]):
                kept.append(group)
            else:
                tally.groups_dropped += 1
        return kept

    async def _scored(self, cohort: Cohort, version: int, tally: StepTally) -> AsyncIterator[list[ScoredTrajectory]]:
        """Each minibatch's worth of outcomes as soon as its last one is finished and scored."""
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

    async def _estimate(self, scored: Sequence[ScoredTrajectory], critic_version: int) -> list[TrainingSample]:
        if not scored:
            return []
        return estimate(scored, await self._token_values(scored), self._config, critic_version=critic_version)

    async def _token_values(self, scored: Sequence[ScoredTrajectory]) -> list[tuple[float, ...]]:
        if self._spec.critic != "token" or self._critic is None:
            return [()] * len(scored)
        prompts, responses = [s.prompt.token_ids for s in scored], [s.trajectory.response_ids for s in scored]
        with self._recorder.stage("values"):
            return await self._critic.token_values(prompts, responses)

    def _require_fresh(self, step: int, version: int, trajectory: Trajectory) -> None:
        staleness = version - trajectory.policy_version
        if not 0 <= staleness <= self._config.loop.max_staleness:
            raise StalenessViolated(
                f"step {step}: {trajectory.worker} sampled {trajectory.request_id} at policy version "
                f"{trajectory.policy_version}, the learner is at {version}: staleness {staleness} is outside "
                f"[0, {self._config.loop.max_staleness}]"
            )

    def _require_few_errors(self, step: int, unscored: Sequence[UnscoredTrajectory], tally: StepTally) -> None:
        """`unscored` are those of the cohort at hand. Judged over the step: a further draw may be a single prompt."""
        limit, errors = self._config.reward.max_error_rate, tally.reward_errors + len(unscored)
        if errors > limit * tally.responses:
            raise UserError(
                f"step {step}: the verifier failed on {errors} of {tally.responses} responses, more than "
                f"reward.max_error_rate {limit} allows; last: "
                f"prompt {unscored[-1].prompt.id}: {unscored[-1].reason}. Try it with `sppo-ray score`, raise "
                "reward.deadline_s or reward.memory_mib, or the limit"
            )


def estimate(
    scored: Sequence[ScoredTrajectory], token_values: Sequence[tuple[float, ...]], config: RunConfig, *, critic_version: int
) -> list[TrainingSample]:
    """Advantages, returns and shaped rewards of samples that are judged together: as many as the algorithm `needs`. Pure.

    `token_values` has () for each sample without a token critic, whose version is `critic_version`.
    """
    spec, settings = config.spec, config.algorithm
    rewarded = [_rewarded(item, values, config) for item, values in zip(scored, token_values, strict=True)]
    advantages = spec.advantages(rewarded, settings)
    returns = spec.returns(rewarded, settings) if spec.returns else [()] * len(rewarded)
    loss: CriticLoss = "bce" if config.critic_needs_probabilities else "mse"
    samples = []
    for item, known, advantage, targets in zip(scored, rewarded, advantages, returns, strict=True):
        valued = _valued(item, known.token_values, loss, critic_version)
        samples.append(TrainingSample(valued, advantage, known.reward, known.token_values, targets))
    return samples


def _rewarded(scored: ScoredTrajectory, token_values: tuple[float, ...], config: RunConfig) -> RewardedSample:
    length, baseline = len(scored.trajectory.response_ids), scored.baseline
    return RewardedSample(
        group=scored.group,
        reward=config.shaped(scored.reward, length),
        num_tokens=length,
        value=None if scored.value is None else scored.value.value,
        token_values=token_values,
        baseline_reward=None if baseline is None else config.shaped(baseline.reward, baseline.response_tokens),
    )


def _valued(scored: ScoredTrajectory, token_values: tuple[float, ...], loss: CriticLoss, critic_version: int) -> ScoredTrajectory:
    """A token critic's value of the prompt is its value before the first response token."""
    if not token_values:
        return scored
    first = token_values[0]
    return replace(scored, value=PromptValue(logit(first) if loss == "bce" else first, first, critic_version))
