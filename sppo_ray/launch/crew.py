"""All workers of a run through all of their incarnations: made where they are missing, given up when one of them is lost.

    assemble --> Workers --watch--> a loss --> disband: learner and critic end, engines drop what they do and become STALE
       ^                                          |
       '--- restart: only what is missing is made-'

Learner and critic hold what a checkpoint restores: after a loss both are processes that never saw anything else. Engines
stay, with no version that is trusted; the verifier and the reference hold nothing, and stay while they answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any, NoReturn

from sppo_ray.config import RunConfig
from sppo_ray.launch.cluster import place
from sppo_ray.launch.materials import Materials, decoder
from sppo_ray.launch.spawner import Spawner
from sppo_ray.launch.workers import total_updates
from sppo_ray.trainer.evaluator import Evaluator
from sppo_ray.trainer.fleet import RolloutFleet
from sppo_ray.trainer.fleet_members import PendingView
from sppo_ray.trainer.interfaces import WorkerFailure
from sppo_ray.trainer.loop import Workers
from sppo_ray.trainer.pipeline import SamplePipeline
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.weight_sync import ProbeTolerance
from sppo_ray.types import SamplingSettings

STATELESS_ANSWER_S = 10.0  # a verifier or reference that is to be kept has to answer within so long


class Crew:
    """Use `crew_of`. One run's workers; `fleet` lives as long as the crew does."""

    def __init__(self, config: RunConfig, materials: Materials, recorder: Recorder, spawner: Spawner) -> None:
        self._config = config
        self._materials = materials
        self._spawner = spawner
        self._made: dict[str, Any] = {}  # role -> worker: learner, critic, reference, scorer; None = the run needs none
        self._pipeline: SamplePipeline | None = None
        self._fleet_start: asyncio.Future[None] | None = None
        self.fleet = RolloutFleet(
            self._engine,
            settings=config.rollout,
            tolerance=ProbeTolerance.for_dtype(config.rollout.dtype, config.weight_sync.max_probe_difference)
            if config.weight_sync.verify
            else None,
            on_event=lambda kind, message: recorder.event(kind, message, show=True),
            places=spawner.rollout_places,
        )

    async def assemble(self) -> Workers:
        """Make what is missing. Raises WorkerFailure and UserError; what was made stays for the next try."""
        if self._fleet_start is None:
            self._fleet_start = asyncio.ensure_future(self.fleet.start())
        else:
            self.fleet.replenish()
        spawner, materials = self._spawner, self._materials
        policy_updates, critic_updates = total_updates(self._config)
        await _all_or_none(
            asyncio.shield(self._fleet_start),
            self._make("scorer", spawner.scorer),
            self._make("learner", lambda: spawner.learner(model_path=materials.policy_path, total_updates=policy_updates)),
            self._make("critic", lambda: spawner.critic(model_path=materials.critic_path, total_updates=critic_updates)),
            self._make("reference", lambda: spawner.reference(model_path=materials.policy_path)),
        )
        return self._connected()

    def pending(self) -> list[PendingView]:
        """Processes beside the engines that the cluster has no room for, or that take long to start."""
        return self._spawner.pending()

    async def watch(self) -> NoReturn:
        """Until it is cancelled. Raises WorkerFailure when a process beside the engines is lost."""
        workers = [worker for worker in self._made.values() if worker is not None]
        watches = [asyncio.ensure_future(worker.watch(self._config.recovery)) for worker in workers]
        try:
            await asyncio.gather(*watches)
            raise AssertionError("a watch has no end")
        finally:
            await _end(watches)

    async def disband(self, failure: WorkerFailure) -> None:
        """Give up what is under way, and every process whose state is not known any more."""
        if self._pipeline is not None:
            await self._pipeline.close()
            self._pipeline = None
        keep = [role for role in ("scorer", "reference") if await self._is_well(role, failure)]
        leaving = [self._made.pop(role) for role in list(self._made) if role not in keep]
        await asyncio.gather(self.fleet.abandon(), *(worker.close() for worker in leaving if worker is not None))

    async def close(self) -> None:
        if self._pipeline is not None:
            await self._pipeline.close()
        if self._fleet_start is not None:
            await _end([self._fleet_start])
        workers = [worker for worker in self._made.values() if worker is not None]
        await asyncio.gather(self.fleet.close(), *(worker.close() for worker in workers), return_exceptions=True)

    async def _engine(self, name: str) -> Any:
        materials = self._materials
        return await self._spawner.rollout_worker(name, model_path=materials.policy_path, stop_token_ids=materials.stop_token_ids)

    async def _make(self, role: str, make: Any) -> None:
        if role not in self._made:
            self._made[role] = await make()

    async def _is_well(self, role: str, failure: WorkerFailure) -> bool:
        worker = self._made.get(role)
        name = {"scorer": "reward"}.get(role, role)
        if worker is None or failure.worker.startswith(name):
            return False
        try:
            await asyncio.wait_for(worker.memory(), STATELESS_ANSWER_S)
        except (WorkerFailure, TimeoutError):
            return False
        return True

    def _connected(self) -> Workers:
        config, materials, made = self._config, self._materials, self._made
        decode, stop_ids = decoder(materials.tokenizer), materials.stop_token_ids
        eval_temperature = config.rollout.temperature if config.eval.temperature is None else config.eval.temperature
        self._pipeline = SamplePipeline(
            fleet=self.fleet,
            critic=made["critic"] if config.spec.critic == "prompt" else None,
            scorer=made["scorer"],
            decode=decode,
            sampling=SamplingSettings(config.rollout.temperature, config.rollout.max_response_tokens, stop_ids),
            order=config.loop.minibatch_order,
            seed=config.seed,
            reward_range=config.reward.range,
            greedy_baseline=config.spec.greedy_baseline,
        )
        evaluator = Evaluator(
            materials.held_out,
            fleet=self.fleet,
            critic=made["critic"],
            scorer=made["scorer"],
            decode=decode,
            sampling=SamplingSettings(eval_temperature, config.rollout.max_response_tokens, stop_ids),
            samples_per_prompt=config.eval.samples_per_prompt,
            reward_range=config.reward.range,
            shaped=config.shaped,
            seed=config.seed,
        )
        return Workers(self.fleet, made["learner"], made["critic"], made["reference"], made["scorer"], self._pipeline, evaluator)


@contextlib.asynccontextmanager
async def crew_of(config: RunConfig, materials: Materials, recorder: Recorder, device: str) -> AsyncIterator[Crew]:
    """A crew with a place reserved for each of its workers; gone when the block ends, however it ends."""
    from ray.util.placement_group import remove_placement_group

    group = await place(config)
    spawner = Spawner(config, group, device, on_actors=lambda rows: recorder.live(actors=rows))
    crew = Crew(config, materials, recorder, spawner)
    try:
        yield crew
    finally:
        await crew.close()
        spawner.close()
        remove_placement_group(group)


async def _all_or_none(*work: Awaitable[Any]) -> None:
    """Wait for all of it; the first failure cancels the rest."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def _end(tasks: list[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
