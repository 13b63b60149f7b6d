"""The training loop: ONE loop for synchronous and overlapped runs; `max_staleness` is the only difference.

          dispatch cohort k + s --> [fleet: generate | critic: value | verifier: score]     runs ahead by s = max_staleness steps
                                                  |
    step k:   next minibatch with its advantages (waits for what they need) --> learner.update   critic.update beside it
              ... minibatches_per_step times
              weight sync: version k + 1 on every engine, verified  --> only now cohort k + 1 + s is dispatched
              log, evaluate, checkpoint, wait at the gate (pause, checkpoint now, stop: `gate.py`)

Staleness is bounded by construction: cohort k is dispatched under version max(0, k - s) and trained on at version k.
With s = 0 a step's first minibatch is trained on while its stragglers still generate, but nothing is dispatched
before the sync, so every sample comes from the weights that the step started with.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sppo_ray.config import LoopSettings, RunConfig
from sppo_ray.data.batching import pack
from sppo_ray.data.curriculum import choose
from sppo_ray.seeding import derive_seed
from sppo_ray.trainer.autoscale import Autoscaler
from sppo_ray.trainer.checkpoint import TrainerState, checkpoint_path, write_checkpoint
from sppo_ray.trainer.estimation import AdvantageEstimator, StepTally
from sppo_ray.trainer.evaluator import Evaluator
from sppo_ray.trainer.first_batch import FirstBatchGate
from sppo_ray.trainer.fleet import RolloutFleet
from sppo_ray.trainer.gate import Gate
from sppo_ray.trainer.guardrails import Alarm, GuardrailStop
from sppo_ray.trainer.interfaces import Critic, Learner, Reference, Scorer
from sppo_ray.trainer.pipeline import Cohort, SamplePipeline
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.updates import update_critic, update_metrics
from sppo_ray.trainer.weight_sync import WeightMismatch
from sppo_ray.types import Minibatch, Prompt, TrainingSample


class PromptSource(Protocol):
    def cohort(self, index: int) -> Sequence[Prompt]:
        """The prompts at place `index` of the endless order: a pure function of the settings, the seed and the index."""
        ...


@dataclass(frozen=True, slots=True)
class Workers:
    """Everything the loop drives."""

    fleet: RolloutFleet
    learner: Learner
    critic: Critic | None  # None: the algorithm has none
    reference: Reference | None  # None: no KL penalty
    scorer: Scorer
    pipeline: SamplePipeline
    evaluator: Evaluator


class Trainer:
    """Runs the loop from `state` on. All waiting is in `run`; what is asked of it between two steps goes through `gate`."""

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
        gate: Gate | None = None,
    ) -> None:
        """`gate`: of a run that had trainers before this one; a new one by default."""
        self._config = config
        self._workers = workers
        self._prompts = prompts
        self._recorder = recorder
        self._checkpoints = checkpoints
        self._settings = settings
        self._estimator = AdvantageEstimator(config, workers.critic, recorder, self._redraw)
        self._first_batch = FirstBatchGate(config, workers.learner)
        self._cohorts: deque[Cohort] = deque()
        self.gate = gate or Gate()
        self._autoscaler = Autoscaler(config.rollout) if config.rollout.autoscale is not None else None
        self._saved_step = state.step if state.step else -1
        self._earlier_restarts = state.restarts - workers.fleet.restarts
        self.state = state

    def stop(self) -> None:
        """Finish the step under way, write a checkpoint, return from `run`."""
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
        self.state = dataclasses.replace(self.state, restarts=self._restarts)  # those since the last step, too
        await self._save()
        return self.state

    @property
    def _restarts(self) -> int:
        return self._earlier_restarts + self._workers.fleet.restarts

    async def _pass_gate(self) -> None:
        """Do what was asked for during the step, and wait while the run is paused. Nobody holds up a run that is over."""
        if self.gate.wants_checkpoint:
            await self._save()
        if not self.gate.is_closed or self._is_over:
            return
        with self._recorder.pause(self.state):
            while self.gate.is_closed:
                await self._word_from_outside()
                if self.gate.wants_checkpoint:
                    await self._save()

    async def _word_from_outside(self) -> None:
        """Wait until something is asked of the run. Raises GuardrailStop when nobody looks after a run that a guardrail holds."""
        diagnosis = self.gate.held_because
        patience = self._config.guardrails.max_pause_s if diagnosis else None
        try:
            async with asyncio.timeout(patience):
                await self.gate.changed()
        except TimeoutError:
            raise GuardrailStop(f"{diagnosis} Nobody ended the pause within {patience:g} s.") from None

    def _heed(self, alarms: Sequence[Alarm]) -> None:
        """Do to the run what the alarms of its newest step ask for."""
        for alarm in alarms:
            if alarm.action == "stop":
                raise GuardrailStop(f"{alarm.message} The run stopped after step {self.state.step}, without a checkpoint of it.")
            if alarm.action == "pause":
                self.gate.pause(alarm.message)
                self._recorder.live(paused=True)

    async def _step(self) -> None:
        started = time.perf_counter()
        await self._dispatch_ahead()
        cohort = self._cohorts.popleft()
        tally = StepTally()
        minibatches, metrics, critic_updates = await self._train_on(cohort, tally)
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
        metrics |= await self._sync_weights()
        self.state = dataclasses.replace(self.state, seconds=before.seconds + time.perf_counter() - started)
        figures = self._recorder.step(
            self.state,
            minibatches,
            metrics | tally.metrics(),
            learner_version=before.policy_version,
            fleet=self._workers.fleet.view(),
        )
        self._heed(self._recorder.raised)
        self._autoscale(self.state.seconds - before.seconds, figures.get("seconds/generate-wait", 0.0))
        if self._evaluation_is_due(before):
            await self._evaluate()
        if _is_due(self._config.checkpoint.every, self.state.step):
            await self._checkpoint()

    def _autoscale(self, seconds: float, waited: float) -> None:
        """Ask for a worker more or fewer if the step, of so many seconds in which so many were waited, calls for it."""
        if self._autoscaler is None:
            return
        fleet = self._workers.fleet
        wanted = self._autoscaler.after_step(seconds=seconds, waited=waited, workers=fleet.wanted, is_settled=fleet.is_settled)
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
        """Keep the cohorts of this step and of the next max_staleness steps on their way."""
        last = min(self.state.step + self._config.loop.max_staleness, self._config.loop.steps - 1)
        first = self._cohorts[-1].step + 1 if self._cohorts else self.state.step
        for step in range(first, last + 1):
            prompts = await self._prompts_of(step)
            self._cohorts.append(self._workers.pipeline.dispatch(step, prompts, self._config.data.samples_per_prompt))

    async def _prompts_of(self, step: int) -> Sequence[Prompt]:
        rounds, curriculum = self._config.prompt_rounds, self._config.data.curriculum
        if curriculum is None or self._workers.critic is None:
            return self._prompts.cohort(step * rounds)
        candidates = [prompt for draw in range(rounds) for prompt in self._prompts.cohort(step * rounds + draw)]
        with self._recorder.stage("curriculum"):
            values = await self._workers.critic.values([prompt.critic_token_ids for prompt in candidates])
        chosen = choose(
            [value.value for value in values],
            self._config.data.prompts_per_step,
            sharpness=curriculum.sharpness,
            seed=derive_seed(self._config.seed, "curriculum", step),
        )
        return [candidates[index] for index in chosen]

    def _redraw(self, step: int, draw: int, count: int) -> Cohort:
        """Dynamic sampling: further prompts for a step, from its own part of the prompt stream."""
        prompts = self._prompts.cohort(step * self._config.prompt_rounds + draw)[:count]
        return self._workers.pipeline.dispatch(step, prompts, self._config.data.samples_per_prompt, draw=draw)

    async def _train_on(self, cohort: Cohort, tally: StepTally) -> tuple[list[list[TrainingSample]], dict[str, float], int]:
        """Returns the step's minibatches, its metrics and the number of critic updates."""
        minibatches: list[list[TrainingSample]] = []
        metrics: dict[str, float] = {}
        policy_metrics: list[Mapping[str, float]] = []
        critic_updates: list[asyncio.Future[Mapping[str, float]]] = []
        try:
            async for minibatch, packed in self._packed(cohort, tally):
                if not minibatches:
                    metrics |= await self._check_first(minibatch, packed)
                minibatches.append(minibatch)
                if self._workers.critic is not None:
                    critic_updates.append(asyncio.ensure_future(update_critic(self._config, self._workers.critic, minibatch)))
                if packed is not None:
                    with self._recorder.stage("update"):
                        policy_metrics.append(await self._workers.learner.update(packed))
            with self._recorder.stage("critic-wait"):
                critic_metrics = await asyncio.gather(*critic_updates)
        finally:
            for update in critic_updates:  # of a step that fails; nobody else waits for them
                update.cancel()
            await asyncio.gather(*critic_updates, return_exceptions=True)
        return minibatches, metrics | update_metrics(policy_metrics, critic_metrics), len(critic_metrics)

    async def _check_first(self, minibatch: Sequence[TrainingSample], packed: Minibatch | None) -> Mapping[str, float]:
        """Figures of the engines' log-probs against the learner's. Raises WeightMismatch, with the engine given up."""
        try:
            with self._recorder.stage("first-batch"):
                return await self._first_batch.check(minibatch, packed, version=self.state.policy_version)
        except WeightMismatch as failure:
            self._workers.fleet.distrust(failure)
            raise

    async def _packed(self, cohort: Cohort, tally: StepTally) -> AsyncIterator[tuple[list[TrainingSample], Minibatch | None]]:
        """Minibatches ready for the learner, with every policy's log-probs that the loss asks for; None while the critic
        learns alone."""
        minibatches = self._estimator.minibatches(
            cohort, policy_version=self.state.policy_version, critic_version=self.state.critic_version, tally=tally
        )
        if cohort.step < self._config.critic_warmup_steps:
            async for minibatch in minibatches:
                yield minibatch, None
            return
        if self._config.algorithm.old_logprobs == "rollout":
            async for minibatch in minibatches:
                yield minibatch, await self._with_reference(self._pack(minibatch))
            return
        # pi_old is the policy BEFORE the step's first update, so here the first update waits for the last sample.
        waiting = [minibatch async for minibatch in minibatches]
        with self._recorder.stage("old-logprobs"):
            recomputed = [await self._workers.learner.recompute_logprobs(self._pack(minibatch)) for minibatch in waiting]
        for minibatch, packed in zip(waiting, recomputed, strict=True):
            yield minibatch, await self._with_reference(packed)

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
            published = await self._workers.learner.publish(self.state.policy_version)
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
        best = max(report.accuracy, self.state.best_accuracy if self.state.best_accuracy is not None else report.accuracy)
        self.state = dataclasses.replace(self.state, initial_accuracy=first, final_accuracy=report.accuracy, best_accuracy=best)
        self._recorder.evaluation(self.state, report)

    async def _save(self) -> None:
        """A checkpoint of the steps so far, unless they have one."""
        if self._saved_step != self.state.step:
            await self._checkpoint()
        self.gate.checkpoint_written(checkpoint_path(self._checkpoints, self.state.step))

    async def _checkpoint(self) -> None:
        writers = {"learner": self._workers.learner.save, "records": self._recorder.save}
        if self._workers.critic is not None:
            writers["critic"] = self._workers.critic.save
        with self._recorder.stage("checkpoint"):
            path = await write_checkpoint(
                self._checkpoints, self.state, writers, settings=self._settings, keep=self._config.checkpoint.keep
            )
        self._saved_step = self.state.step
        self._recorder.checkpoint(path)


def is_over(loop: LoopSettings, state: TrainerState) -> bool:
    """Whether the settings ask for no more than what `state` has behind it."""
    return state.step >= loop.steps or (loop.budget_s is not None and state.seconds >= loop.budget_s)


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
