"""Starts engines and the verifier to serve a checkpoint outside of a run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from sppo_ray.config.evaluation import EvaluationConfig
from sppo_ray.launch.actor_factory import actor_factory
from sppo_ray.planning.resources import serving_bundles_of
from sppo_ray.protocols import EnvironmentClient, RewardClient, RolloutWorker
from sppo_ray.rollout.fleet import RolloutFleet


@contextlib.asynccontextmanager
async def serving(
    config: EvaluationConfig,
    policy_path: Path,
    *,
    device: str,
    stop_token_ids: tuple[int, ...],
    on_event: Callable[[str, str], None],
) -> AsyncIterator[tuple[RolloutFleet, RewardClient, EnvironmentClient | None]]:
    """Yield engines that serve the checkpoint, the verifier, and the environment if there is one;
    all end with the block.
    """
    async with actor_factory(config, device, serving_bundles_of(config)) as factory:

        async def spawn(name: str) -> RolloutWorker:
            return await factory.rollout_worker(name, policy_path, stop_token_ids)

        fleet = RolloutFleet(
            spawn, settings=config.rollout, tolerance=None, on_event=on_event, fixed_weights=True
        )
        try:
            _, reward_client, environment = await asyncio.gather(
                fleet.start(), factory.reward_client(), factory.environment_client()
            )
            yield fleet, reward_client, environment
            await reward_client.close()
            if environment is not None:
                await environment.close()
        finally:
            await fleet.close()
