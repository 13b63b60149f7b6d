"""The training loop, for synchronous runs (`max_staleness` = 0) and overlapped runs (> 0).

          dispatch cohort k + s --> [fleet: generate | critic: value | verifier: score]     runs ahead by s = max_staleness steps
                                                  |
    step k:   next minibatch with its advantages (waits for what they need)
        --> learner.update   critic.update (concurrently)
              ... minibatches_per_step times
              weight sync: version k + 1 on every engine, verified
                  --> only now cohort k + 1 + s is dispatched
              log, evaluate, checkpoint, wait at the gate (pause, checkpoint now, stop: `pause.py`)

Staleness is at most s: cohort k is dispatched with version max(0, k - s) and trained on at version
k. With s = 0 the first minibatch of a step is trained on while other responses are still generated.
The next cohort is dispatched only after the sync, so all samples come from the weights at the start
of the step.

With roles that share GPUs (`cluster.layout: colocated`) training waits for the last sample, the
critic is updated after the policy, and `turns.enter` marks the border of each phase (`phases.py`).
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_ray.algorithms.tracker import PromptTracker, TrackedReward
from sppo_ray.config import LoopSettings, RunConfig
from sppo_ray.data.curriculum import choose
from sppo_ray.data.packing import pack
from sppo_ray.evaluation.sampler import Evaluator
from sppo_ray.protocols import Critic, Learner, PromptSource, Reference, RewardClient
from sppo_ray.rollout.autoscale import Autoscaler
from sppo_ray.rollout.fleet import RolloutFleet
from sppo_ray.rollout.pipeline import RolloutBatch, SamplePipeline
from sppo_ray.rollout.tasks import end_tasks
from sppo_ray.rollout.weight_sync import WeightMismatch
from sppo_ray.rundir.status import Alert
from sppo_ray.seeding import derive_seed
from sppo_ray.trainer.advantages import AdvantageEstimator, StepStats
from sppo_ray.trainer.checkpoint import TrainerState, checkpoint_path, write_checkpoint
from sppo_ray.trainer.guardrails import GuardrailStop
from sppo_ray.trainer.logprob_check import LogprobCheck
from sppo_ray.trainer.pause import PauseGate
from sppo_ray.trainer.phases import Phase
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.tracker_state import tracker_writer
from sppo_ray.trainer.turns import Separate, Turns
from sppo_ray.trainer.updates import update_critic, update_metrics
from sppo_ray.types import Minibatch, Prompt, TokenRows, TrainingSample


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of the loop."""

    fleet: RolloutFleet
    learner: Learner
    critic: Critic | None  # None: the algorithm has no critic
    reference: Reference | None  # None: no KL penalty
    reward_client: RewardClient
    pipeline: SamplePipeline
    evaluator: Evaluator
    turns: Turns = Separate()


class Trainer:
    """Runs the loop from `state` on. Commands between two steps come through `gate`."""

    def __init__(
        self,
        config: RunConfig,
        workers: Workers,
        prompts: PromptSource,
        recorder: Recorder,
        *,
        state: TrainerState,
        checkpoints: Path,
        settings: Mapping[str, Any],
        gate: PauseGate | None = None,
        tracker: PromptTracker | None = None,
    ) -> None:
        """`gate`: the gate of an earlier trainer of the run; None = a new one. `tracker`: that of
        `state`; None without one.
        """
        self._config = config
        self._workers = workers
        self._turns = workers.turns
        self._prompts = prompts
        self._recorder = recorder
        self._checkpoints = checkpoints
        self._settings = settings
        self._tracker = tracker
        self._estimator = AdvantageEstimator(
            config,
            critic=workers.critic,
            pipeline=workers.pipeline,
            prompts=prompts,
            recorder=recorder,
            tracker=tracker,
        )
        self._first_batch = LogprobCheck(config, workers.learner)
        self._cohorts: deque[RolloutBatch] = deque()
        self.gate = gate or PauseGate()
        self._autoscaler = Autoscaler(config.rollout) if config.rollout.autoscale is not None else None
        self._saved_step = state.step if state.step else -1
        self._earlier_restarts = state.restarts - workers.fleet.restarts
        self.state = state

    def stop(self) -> None:
        """Make `run` finish the current step, write a checkpoint and return."""
        self.gate.stop()

    @property
    def stopped_early(self) -> bool:
        return self.gate.is_stopping and not self._is_over

    @property
    def _is_over(self) -> bool:
        return is_over(self._config.loop, self.state)

    async def run(self) -> TrainerState:
        await self._sync_weights()
        if self.state.step == 0 and self._config.eval.at_start and self.state.initial_accuracy is None:
            await self._evaluate()
        await self._pass_gate()
        while not self._is_over and not self.gate.is_stopping:
            await self._step()
            await self._pass_gate()
        # includes restarts since the last step
        self.state = dataclasses.replace(self.state, restarts=self._restarts)
        await self._save()
        return self.state

    @property
    def _restarts(self) -> int:
        return self._earlier_restarts + self._workers.fleet.restarts

    async def _pass_gate(self) -> None:
        """Apply the commands received during the step, and wait while the run is paused. A finished
        run does not wait.
        """
        if self.gate.wants_checkpoint:
            await self._save()
        if not self.gate.is_closed or self._is_over:
            return
        with self._recorder.pause(self.state):
            while self.gate.is_closed:
                await self._wait_for_command()
                if self.gate.wants_checkpoint:
                    await self._save()

    async def _wait_for_command(self) -> None:
        """Wait for a command. Raises GuardrailStop when a pause by a guardrail lasts too long."""
        diagnosis = self.gate.held_because
        patience = self._config.guardrails.max_pause_s if diagnosis else None
        try:
            async with asyncio.timeout(patience):
                await self.gate.changed()
        except TimeoutError:
            raise GuardrailStop(f"{diagnosis} The pause timed out after {patience:g} s.") from None

    def _apply_alerts(self, alarms: Sequence[Alert]) -> None:
        """Pause or stop the run as the new alarms require."""
        for alarm in alarms:
            if alarm.action == "stop":
                raise GuardrailStop(
                    f"{alarm.message} The run stopped after step {self.state.step}, without a checkpoint of "
                    "it."
                )
            if alarm.action == "pause":
                self.gate.pause(alarm.message)
                self._recorder.live(paused=True)

    async def _step(self) -> None:
        started = time.perf_counter()
        await self._dispatch_ahead()
        cohort = self._cohorts.popleft()
        tally = StepStats()
        minibatches, metrics, critic_updates = await self._train_on(cohort, tally)
        if self._tracker is not None:  # after the last advantage of the step
            self._tracker.learn(_tracked(sample) for minibatch in minibatches for sample in minibatch)
            metrics["tracker/prompts"] = len(self._tracker)
        before = self.state
        self.state = dataclasses.replace(
            before,
            step=before.step + 1,
            policy_version=before.policy_version + 1,
            critic_version=before.critic_version + critic_updates,
            samples=before.samples + sum(len(minibatch) for minibatch in minibatches),
            reward_errors=before.reward_errors + tally.reward_errors,
            response_tokens=before.response_tokens + tally.response_tokens,
            restarts=self._restarts,
        )
        self._recorder.trajectories(self.state.step, minibatches, learner_version=before.policy_version)
        metrics |= await self._sync_weights()
        self.state = dataclasses.replace(self.state, seconds=before.seconds + time.perf_counter() - started)
        figures = self._recorder.step(
            self.state,
            minibatches,
            metrics | tally.metrics(),
            learner_version=before.policy_version,
            fleet=self._workers.fleet.view(),
        )
        self._apply_alerts(self._recorder.raised)
        await self._recorder.call_back(self.state.step, figures)
        self._autoscale(self.state.seconds - before.seconds, figures.get("seconds/generate-wait", 0.0))
        if self._evaluation_is_due(before):
            await self._evaluate()
        if _is_due(self._config.checkpoint.every, self.state.step):
            await self._checkpoint()

    def _autoscale(self, seconds: float, waited: float) -> None:
        """Scale the fleet. The last step took `seconds`, and the learner waited for `waited` of
        them.
        """
        if self._autoscaler is None:
            return
        fleet = self._workers.fleet
        wanted = self._autoscaler.after_step(
            seconds=seconds, waited=waited, workers=fleet.wanted, is_settled=fleet.is_settled
        )
        if wanted is not None:
            self._recorder.event("autoscale", fleet.scale(wanted), show=True)

    def _evaluation_is_due(self, before: TrainerState) -> bool:
        every_s = self._config.eval.every_s
        if self._is_over:
            return True
        if every_s is not None:
            return self.state.seconds // every_s > before.seconds // every_s
        return _is_due(self._config.eval.every, self.state.step)

    async def _dispatch_ahead(self) -> None:
        """Dispatch the cohorts of this step and of the next max_staleness steps, if not yet
        done.
        """
        last = min(self.state.step + self._config.loop.max_staleness, self._config.loop.steps - 1)
        first = self._cohorts[-1].step + 1 if self._cohorts else self.state.step
        for step in range(first, last + 1):
            prompts = await self._prompts_of(step)
            self._cohorts.append(
                self._workers.pipeline.dispatch(step, prompts, self._config.data.samples_per_prompt)
            )

    async def _prompts_of(self, step: int) -> Sequence[Prompt]:
        rounds, curriculum = self._config.prompt_rounds, self._config.data.curriculum
        if curriculum is None:
            return self._prompts.cohort(step * rounds)
        candidates = [
            prompt for draw in range(rounds) for prompt in self._prompts.cohort(step * rounds + draw)
        ]
        with self._recorder.stage("curriculum"):
            rates = await self._rates_of(candidates)
        chosen = choose(
            rates,
            self._config.data.prompts_per_step,
            sharpness=curriculum.sharpness,
            floor=curriculum.floor,
            seed=derive_seed(self._config.seed, "curriculum", step),
        )
        return [candidates[index] for index in chosen]

    async def _rates_of(self, prompts: Sequence[Prompt]) -> list[float]:
        """Return the prompt critic's value of each prompt, or without a critic the tracker's
        rate.
        """
        if self._workers.critic is None:
            assert self._tracker is not None
            return [self._tracker.history(prompt.id, None).rate for prompt in prompts]
        rows = TokenRows.of([prompt.critic_token_ids for prompt in prompts])
        return [value.value for value in await self._workers.critic.values(rows)]

    async def _train_on(
        self, cohort: RolloutBatch, tally: StepStats
    ) -> tuple[list[list[TrainingSample]], dict[str, float], int]:
        """Train on a cohort. Returns its minibatches, metrics and the number of critic updates."""
        minibatches: list[list[TrainingSample]] = []
        metrics: dict[str, float] = {}
        policy_metrics: list[Mapping[str, float]] = []
        critic_updates: list[asyncio.Future[Mapping[str, float]]] = []
        try:
            async for minibatch, packed in self._packed(cohort, tally):
                if not minibatches:
                    metrics |= await self._check_first(minibatch, packed)
                minibatches.append(minibatch)
                if not self._turns.is_shared:
                    critic_updates += self._critic_updates([minibatch])
                if packed is not None:
                    with self._recorder.stage("update"):
                        policy_metrics.append(await self._workers.learner.update(packed))
            with self._recorder.stage("critic-wait"):
                if self._turns.is_shared and self._workers.critic is not None:
                    await self._turns.enter(Phase.CRITIC)
                    critic_updates += self._critic_updates(minibatches)
                critic_metrics = await asyncio.gather(*critic_updates)
        finally:
            await end_tasks(critic_updates)  # after a failure they are still running
        return minibatches, metrics | update_metrics(policy_metrics, critic_metrics), len(critic_metrics)

    def _critic_updates(
        self, minibatches: Sequence[Sequence[TrainingSample]]
    ) -> list[asyncio.Future[Mapping[str, float]]]:
        """Start the updates of the critic for each minibatch; they run in this order."""
        critic = self._workers.critic
        if critic is None:
            return []
        return [
            asyncio.ensure_future(update_critic(self._config, critic, minibatch))
            for minibatch in minibatches
            for _ in range(self._config.critic.updates_per_minibatch)
        ]

    async def _check_first(
        self, minibatch: Sequence[TrainingSample], packed: Minibatch | None
    ) -> Mapping[str, float]:
        """Compare the engines' log-probs with the learner's and return the metrics. Raises
        WeightMismatch after marking the engine as failed.
        """
        try:
            with self._recorder.stage("first-batch"):
                return await self._first_batch.check(minibatch, packed, version=self.state.policy_version)
        except WeightMismatch as failure:
            self._workers.fleet.mark_failed(failure)
            raise

    async def _packed(
        self, cohort: RolloutBatch, tally: StepStats
    ) -> AsyncIterator[tuple[list[TrainingSample], Minibatch | None]]:
        """Yield each minibatch with its packed form for the learner, including the log-probs that
        the loss needs. The packed form is None while only the critic is trained.
        """
        minibatches = self._estimator.minibatches(
            cohort,
            policy_version=self.state.policy_version,
            critic_version=self.state.critic_version,
            tally=tally,
        )
        if self._turns.is_shared:
            minibatches = self._after_generation(minibatches)
        if cohort.step < self._config.critic_warmup_steps:
            async for minibatch in minibatches:
                yield minibatch, None
            return
        if self._config.algorithm.old_logprobs == "rollout":
            async for minibatch in minibatches:
                yield minibatch, await self._with_reference(self._pack(minibatch))
            return
        # pi_old is the policy before the step's first update, so the first update must wait for the
        # last sample. Log-probs are computed while later samples are still generated.
        recomputed = []
        async for minibatch in minibatches:
            with self._recorder.stage("old-logprobs"):
                packed = await self._workers.learner.recompute_logprobs(self._pack(minibatch))
            recomputed.append((minibatch, packed))
        for minibatch, packed in recomputed:
            yield minibatch, await self._with_reference(packed)

    async def _after_generation(
        self, minibatches: AsyncIterator[list[TrainingSample]]
    ) -> AsyncIterator[list[TrainingSample]]:
        """Yield the minibatches when the engines have generated all of them and sleep."""
        complete = [minibatch async for minibatch in minibatches]
        with self._recorder.stage("turn"):
            await self._turns.enter(Phase.POLICY)
        for minibatch in complete:
            yield minibatch

    def _pack(self, minibatch: Sequence[TrainingSample]) -> Minibatch:
        return pack(minibatch, self._config.learner.ranks, self._config.learner.max_tokens_per_microbatch)

    async def _with_reference(self, packed: Minibatch) -> Minibatch:
        if self._workers.reference is None:
            return packed
        with self._recorder.stage("reference"):
            return await self._workers.reference.logprobs(packed)

    async def _sync_weights(self) -> dict[str, float]:
        with self._recorder.stage("sync"):
            started = time.perf_counter()
            await self._turns.enter(Phase.PUBLISH)
            published = await self._workers.learner.publish(self.state.policy_version)
            await self._turns.enter(Phase.GENERATE)
            proof = await self._workers.fleet.sync(published)
        self._recorder.weights(published, proof)
        return {
            "sync/seconds": time.perf_counter() - started,
            "sync/mebibytes": published.manifest.num_bytes / 2**20,
            "sync/workers": len(proof.receipts),
            "sync/probe_difference_max": proof.max_probe_difference,
        }

    async def _evaluate(self) -> None:
        if self._workers.evaluator.is_empty:
            return
        with self._recorder.stage("evaluate"):
            report = await self._workers.evaluator.evaluate(self.state.step, self.state.policy_version)
        first = self.state.initial_accuracy
        if first is None and self.state.step == 0:
            first = report.accuracy
        best = max(
            report.accuracy,
            self.state.best_accuracy if self.state.best_accuracy is not None else report.accuracy,
        )
        self.state = dataclasses.replace(
            self.state, initial_accuracy=first, final_accuracy=report.accuracy, best_accuracy=best
        )
        self._recorder.evaluation(self.state, report)

    async def _save(self) -> None:
        """Write a checkpoint of the current step unless there is one."""
        if self._saved_step != self.state.step:
            await self._checkpoint()
        self.gate.checkpoint_written(checkpoint_path(self._checkpoints, self.state.step))

    async def _checkpoint(self) -> None:
        writers = {"learner": self._workers.learner.save, "records": self._recorder.save}
        if self._workers.critic is not None:
            writers["critic"] = self._workers.critic.save
        if self._tracker is not None:
            writers["tracker"] = tracker_writer(self._tracker)
        with self._recorder.stage("checkpoint"):
            path = await write_checkpoint(
                self._checkpoints,
                self.state,
                writers,
                settings=self._settings,
                keep=self._config.checkpoint.keep,
            )
        self._saved_step = self.state.step
        self._recorder.checkpoint(path)


def is_over(loop: LoopSettings, state: TrainerState) -> bool:
    """Return whether the run has done all its steps or used its time budget."""
    return state.step >= loop.steps or (loop.budget_s is not None and state.seconds >= loop.budget_s)


def _tracked(sample: TrainingSample) -> TrackedReward:
    scored = sample.scored
    assert scored.history is not None
    value = None if scored.value is None else scored.value.value
    return TrackedReward(scored.prompt.id, sample.shaped_reward, value, scored.history)


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
