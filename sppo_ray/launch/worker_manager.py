"""Starts all workers of a run, and replaces them after a loss.

    start --> Workers --watch--> a loss --> reset: learner and critic end, engines drop what they do and become STALE
       ^                                          |
       '----------- only what is missing is made -'

A checkpoint restores learner and critic, so after a loss both are new processes. Engines stay but
lose their version. The reward actor and the reference have no state and stay while they answer.
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, NoReturn, TypeVar

from sppo_ray.config import RolloutSettings, RunConfig
from sppo_ray.evaluation.sampler import Evaluator
from sppo_ray.launch.actor_factory import ActorFactory, actor_factory
from sppo_ray.launch.run_inputs import RunInputs, decoder, episodes_of
from sppo_ray.planning.resources import bundles_of
from sppo_ray.protocols import (
    Critic,
    EnvironmentClient,
    Learner,
    Reference,
    RewardClient,
    RoleName,
    RoleWorker,
    RolloutWorker,
    WorkerFailure,
)
from sppo_ray.rollout.fleet import RolloutFleet
from sppo_ray.rollout.pipeline import SamplePipeline
from sppo_ray.rollout.tasks import all_or_none, end_tasks
from sppo_ray.rollout.views import PendingView
from sppo_ray.rollout.weight_sync import ProbeTolerance
from sppo_ray.trainer.loop import Workers
from sppo_ray.trainer.phases import Phase
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.turns import Colocated, Separate
from sppo_ray.trainer.worker_times import timed
from sppo_ray.types import SamplingSettings

STATELESS_ANSWER_S = 10.0  # deadline for the answer of a reward actor or reference that is kept
Report = Callable[[str], None]
R = TypeVar("R", bound=RoleWorker | None)  # None: the run does not use the role
T = TypeVar("T")


class Role(Generic[R]):
    """Holds the worker of one role; `make` creates it when it is missing."""

    def __init__(self, name: RoleName, make: Callable[[], Awaitable[R]], report: Report) -> None:
        self.name = name
        self._make, self._report = make, report
        self.worker: R | None = None

    async def get(self) -> R:
        """Return the worker; create it if there is none."""
        if self.worker is None:
            self.worker = await _timed_start(self.name, self._make(), self._report)
        return self.worker

    async def give_up(self) -> None:
        worker, self.worker = self.worker, None
        if worker is not None:
            await worker.close()

    async def is_well(self) -> bool:
        if self.worker is None:
            return False
        try:
            await asyncio.wait_for(self.worker.memory(), STATELESS_ANSWER_S)
        except (WorkerFailure, TimeoutError):
            return False
        return True


async def _timed_start(name: str, start: Awaitable[T], report: Report) -> T:
    """Return the started worker, and report the seconds; None = the run has no such worker."""
    began = time.perf_counter()
    worker = await start
    if worker is not None:
        report(f"{name} is up after {time.perf_counter() - began:.1f} s")
    return worker


class WorkerManager:
    """Manages all workers; use `run_workers`. `fleet` lives as long as the manager."""

    def __init__(
        self, config: RunConfig, inputs: RunInputs, recorder: Recorder, factory: ActorFactory
    ) -> None:
        self._config = config
        self._inputs = inputs
        self._factory = factory
        self._times, self._report = recorder.times, recorder.message
        report = self._report
        policy, critic = inputs.policy_path, inputs.critic_path
        self._learner: Role[Learner] = Role("learner", lambda: factory.learner(policy), report)
        self._critic: Role[Critic | None] = Role("critic", lambda: factory.critic(critic, policy), report)
        self._reference: Role[Reference | None] = Role(
            "reference", lambda: factory.reference(policy), report
        )
        self._reward: Role[RewardClient] = Role("reward", factory.reward_client, report)
        self._environment: Role[EnvironmentClient | None] = Role(
            "environment", factory.environment_client, report
        )
        self._roles = (self._reward, self._environment, self._learner, self._critic, self._reference)
        self._pipeline: SamplePipeline | None = None
        self._fleet_start: asyncio.Future[None] | None = None
        is_shared = config.cluster.layout == "colocated"
        self._turns = Colocated(lambda: self.fleet.sleep()) if is_shared else None
        self.fleet = RolloutFleet(
            self._engine,
            settings=_fixed_size(config.rollout) if is_shared else config.rollout,
            tolerance=ProbeTolerance.for_dtype(config.rollout.dtype, config.weight_sync.max_probe_difference)
            if config.weight_sync.verify
            else None,
            on_event=lambda kind, message: recorder.event(kind, message, show=True),
            places=factory.places,
            starting=self._turns.starting if self._turns else contextlib.nullcontext,
        )

    async def start(self) -> Workers:
        """Start all missing workers. Raises WorkerFailure and UserError; started workers stay for
        the next try.
        """
        if self._turns is not None:
            await self._start_in_turns(self._turns)
        else:
            await all_or_none(self._start_engines(), *(role.get() for role in self._roles))
        return self._connected(
            await self._learner.get(),
            await self._critic.get(),
            await self._reference.get(),
            await self._reward.get(),
            await self._environment.get(),
        )

    def _start_engines(self) -> Awaitable[None]:
        if self._fleet_start is None:
            self._fleet_start = asyncio.ensure_future(self.fleet.start())
        else:
            self.fleet.replenish()
        return asyncio.shield(self._fleet_start)

    async def _start_in_turns(self, turns: Colocated) -> None:
        """Start the roles that share GPUs one after another, because each takes most of the memory
        while it starts. The first time the engines come first; later they live or wait to start.
        """
        if self._fleet_start is None:
            await turns.enter(Phase.GENERATE)
        await all_or_none(self._start_engines(), self._reward.get(), self._environment.get())
        await turns.enter(Phase.POLICY)
        turns.add("learner", await self._learner.get())
        await turns.enter(Phase.CRITIC)
        if (critic := await self._critic.get()) is not None:
            turns.add("critic", critic)
        await turns.enter(Phase.REST)

    def pending(self) -> list[PendingView]:
        """Processes other than engines that wait for room or take long to start."""
        return self._factory.pending()

    async def watch(self) -> NoReturn:
        """Run until cancelled. Raises WorkerFailure when a process other than an engine is lost."""
        workers = [role.worker for role in self._roles if role.worker is not None]
        await all_or_none(*(worker.watch(self._config.recovery) for worker in workers))
        raise AssertionError("a watch has no end")

    async def reset(self, failure: WorkerFailure) -> None:
        """Cancel all work, and end every process whose state is unknown."""
        await self._close_pipeline()
        leaving: list[Role] = [self._learner, self._critic]
        for stateless in (self._reward, self._environment, self._reference):
            if failure.role == stateless.name or not await stateless.is_well():
                leaving.append(stateless)
        await asyncio.gather(self.fleet.abandon(), *(role.give_up() for role in leaving))
        if self._turns is not None:
            await self._turns.reset()

    async def close(self) -> None:
        await self._close_pipeline()
        if self._fleet_start is not None:
            await end_tasks([self._fleet_start])
        await asyncio.gather(
            self.fleet.close(), *(role.give_up() for role in self._roles), return_exceptions=True
        )

    async def _close_pipeline(self) -> None:
        if self._pipeline is not None:
            await self._pipeline.close()
            self._pipeline = None

    async def _engine(self, name: str) -> RolloutWorker:
        inputs = self._inputs
        start = self._factory.rollout_worker(name, inputs.policy_path, inputs.stop_token_ids)
        worker = await _timed_start(name, start, self._report)
        return timed(worker, name, self._times)

    def _connected(
        self,
        learner: Learner,
        critic: Critic | None,
        reference: Reference | None,
        reward_client: RewardClient,
        environment: EnvironmentClient | None,
    ) -> Workers:
        config, inputs, times = self._config, self._inputs, self._times
        learner = timed(learner, "learner", times)
        critic = critic and timed(critic, "critic", times)
        reference = reference and timed(reference, "reference", times)
        reward_client = timed(reward_client, "reward", times)
        decode, stop_ids = decoder(inputs.tokenizer), inputs.stop_token_ids
        episodes = None
        if environment is not None:
            environment = timed(environment, "environment", times)
            episodes = episodes_of(config, self.fleet, environment, inputs.observations, decode)
        eval_temperature = (
            config.rollout.temperature if config.eval.temperature is None else config.eval.temperature
        )
        self._pipeline = SamplePipeline(
            fleet=self.fleet,
            critic=critic if config.spec.critic == "prompt" else None,
            reward_client=reward_client,
            decode=decode,
            sampling=SamplingSettings(
                config.rollout.temperature, config.rollout.max_response_tokens, stop_ids
            ),
            order=config.loop.minibatch_order,
            seed=config.seed,
            reward_range=config.reward_range,
            greedy_baseline=config.spec.greedy_baseline,
            episodes=episodes,
        )
        evaluator = Evaluator(
            inputs.held_out,
            fleet=self.fleet,
            critic=critic,
            reward_client=reward_client,
            decode=decode,
            sampling=SamplingSettings(eval_temperature, config.rollout.max_response_tokens, stop_ids),
            samples_per_prompt=config.eval.samples_per_prompt,
            reward_range=config.reward_range,
            shaped=config.shaped,
            seed=config.seed,
            episodes=episodes,
            max_error_rate=config.reward.max_error_rate,
        )
        return Workers(
            self.fleet,
            learner,
            critic,
            reference,
            reward_client,
            self._pipeline,
            evaluator,
            self._turns or Separate(),
        )


def _fixed_size(rollout: RolloutSettings) -> RolloutSettings:
    """A fleet of engines that share their GPUs with ranks cannot be scaled."""
    return rollout.model_copy(update={"min_workers": rollout.workers, "max_workers": rollout.workers})


@contextlib.asynccontextmanager
async def run_workers(
    config: RunConfig, inputs: RunInputs, recorder: Recorder, device: str
) -> AsyncIterator[WorkerManager]:
    """Yield a manager with a place reserved for each worker; all workers end with the block."""
    bundles = bundles_of(config)
    async with actor_factory(
        config, device, bundles, on_actors=lambda rows: recorder.live(actors=rows)
    ) as factory:
        manager = WorkerManager(config, inputs, recorder, factory)
        try:
            yield manager
        finally:
            await manager.close()
