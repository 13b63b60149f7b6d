"""All workers of a run, up and connected for the length of a block, and gone when it ends, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from sppo_ray.config import RunConfig
from sppo_ray.launch.cluster import place
from sppo_ray.launch.materials import Materials, decoder
from sppo_ray.launch.spawner import Spawner
from sppo_ray.resources import serving_bundles_of
from sppo_ray.trainer.evaluator import Evaluator
from sppo_ray.trainer.fleet import RolloutFleet
from sppo_ray.trainer.loop import Workers
from sppo_ray.trainer.pipeline import SamplePipeline
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.weight_sync import ProbeTolerance
from sppo_ray.types import SamplingSettings


@contextlib.asynccontextmanager
async def training_workers(config: RunConfig, materials: Materials, recorder: Recorder, device: str) -> AsyncIterator[Workers]:
    """What the trainer drives."""
    from ray.util.placement_group import remove_placement_group

    group = await place(config)
    spawner = Spawner(config, group, device)
    stop_ids = materials.stop_token_ids
    updates = config.data.minibatches_per_step

    async def spawn(name: str) -> Any:
        return await spawner.rollout_worker(name, model_path=materials.policy_path, stop_token_ids=stop_ids)

    fleet = RolloutFleet(
        spawn,
        settings=config.rollout,
        tolerance=ProbeTolerance.for_dtype(config.rollout.dtype, config.weight_sync.max_probe_difference)
        if config.weight_sync.verify
        else None,
        on_event=lambda kind, message: recorder.event(kind, message, show=True),
        places=spawner.rollout_places,
    )
    try:
        scorer = spawner.scorer()
        policy_updates = updates * max(1, config.loop.steps - config.critic_warmup_steps)
        _, _, learner, critic, reference = await asyncio.gather(
            fleet.start(),
            scorer.ready(config.cluster.ready_timeout_s),
            spawner.learner(model_path=materials.policy_path, total_updates=policy_updates),
            spawner.critic(model_path=materials.critic_path, total_updates=updates * config.loop.steps),
            spawner.reference(model_path=materials.policy_path),
        )
        decode = decoder(materials.tokenizer)
        sampling = SamplingSettings(config.rollout.temperature, config.rollout.max_response_tokens, stop_ids)
        eval_temperature = config.rollout.temperature if config.eval.temperature is None else config.eval.temperature
        pipeline = SamplePipeline(
            fleet=fleet,
            critic=critic if config.spec.critic == "prompt" else None,
            scorer=scorer,
            decode=decode,
            sampling=sampling,
            order=config.loop.minibatch_order,
            seed=config.seed,
            reward_range=config.reward.range,
            greedy_baseline=config.spec.greedy_baseline,
        )
        evaluator = Evaluator(
            materials.held_out,
            fleet=fleet,
            critic=critic,
            scorer=scorer,
            decode=decode,
            sampling=SamplingSettings(eval_temperature, config.rollout.max_response_tokens, stop_ids),
            samples_per_prompt=config.eval.samples_per_prompt,
            reward_range=config.reward.range,
            seed=config.seed,
        )
        try:
            yield Workers(fleet, learner, critic, reference, scorer, pipeline, evaluator)
        finally:
            await pipeline.close()
            optional = [worker.close() for worker in (critic, reference) if worker is not None]
            await asyncio.gather(fleet.close(), learner.close(), scorer.close(), *optional)
    finally:
        await fleet.close()
        spawner.rollout_places.close()
        remove_placement_group(group)


async def peak_memory(workers: Workers) -> dict[str, int]:
    """Peak bytes by worker; one that does not answer at the end of a run is left out rather than failing it."""
    roles = (workers.fleet, workers.learner, workers.critic, workers.reference, workers.scorer)
    asked = [role.memory() for role in roles if role is not None]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return {name: size for answer in answers if isinstance(answer, Mapping) for name, size in answer.items()}


@contextlib.asynccontextmanager
async def serving(
    config: RunConfig, policy_path: Path, *, device: str, stop_token_ids: tuple[int, ...], on_event: Callable[[str, str], None]
) -> AsyncIterator[tuple[RolloutFleet, Any]]:
    """(fleet, scorer): engines that serve the checkpoint as it is, and the verifier; gone when the block ends."""
    from ray.util.placement_group import remove_placement_group

    bundles = serving_bundles_of(config)
    group = await place(config, bundles)
    spawner = Spawner(config, group, device, bundles)

    async def spawn(name: str) -> Any:
        return await spawner.rollout_worker(name, model_path=policy_path, stop_token_ids=stop_token_ids)

    fleet = RolloutFleet(spawn, settings=config.rollout, tolerance=None, on_event=on_event, fixed_weights=True)
    scorer = spawner.scorer()
    try:
        await asyncio.gather(fleet.start(), scorer.ready(config.cluster.ready_timeout_s))
        yield fleet, scorer
    finally:
        await asyncio.gather(fleet.close(), scorer.close())
        remove_placement_group(group)
