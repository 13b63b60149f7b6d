"""Workers without a run's crew: those that serve a checkpoint, those that take a step again; what all of them are asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from sppo_ray.config import RunConfig
from sppo_ray.launch.cluster import place
from sppo_ray.launch.spawner import Spawner
from sppo_ray.resources import serving_bundles_of
from sppo_ray.trainer.fleet import RolloutFleet
from sppo_ray.trainer.interfaces import Critic, Learner, Reference
from sppo_ray.trainer.loop import Workers


async def learning_workers(
    spawner: Spawner, config: RunConfig, policy_path: Path, critic_path: Path
) -> tuple[Learner, Critic | None, Reference | None]:
    """Learner, critic and reference, all up; None for those that the algorithm does without."""
    policy_updates, critic_updates = total_updates(config)
    learner, critic, reference = await asyncio.gather(
        spawner.learner(model_path=policy_path, total_updates=policy_updates),
        spawner.critic(model_path=critic_path, total_updates=critic_updates),
        spawner.reference(model_path=policy_path),
    )
    return learner, critic, reference


def total_updates(config: RunConfig) -> tuple[int, int]:
    """Optimizer steps of the policy and of the critic over the whole run: what their schedules are made for."""
    a_step = config.data.minibatches_per_step
    return a_step * max(1, config.loop.steps - config.critic_warmup_steps), a_step * config.loop.steps


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
    try:
        _, scorer = await asyncio.gather(fleet.start(), spawner.scorer())
        yield fleet, scorer
        await scorer.close()
    finally:
        await fleet.close()
        spawner.close()
        remove_placement_group(group)
