"""Start a replay's actors: the run's learner, critic and reference with its placement, without
engines and verifier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from sppo_ray.config import RunConfig
from sppo_ray.launch.actor_factory import actor_factory
from sppo_ray.launch.cluster import cluster_with_room
from sppo_ray.launch.run_inputs import model_paths
from sppo_ray.planning.resources import learning_bundles_of
from sppo_ray.replay.records import RecordedStep, Start
from sppo_ray.replay.replay import Rederived, Replay


def rederive(
    config: RunConfig,
    target: RecordedStep,
    start: Start,
    steps: Iterable[RecordedStep],
    report: Callable[[str], None],
) -> Rederived:
    """Repeat `steps` from `start` on the Ray cluster of `config.cluster`; no process remains
    afterwards.

    Raises UserError when the cluster is too small or a model does not load, and WorkerFailure.
    """
    paths = model_paths(config, report)
    with cluster_with_room(config, learning_bundles_of(config)) as device:
        return asyncio.run(_rederive(config, target, start, steps, report, device=device, paths=paths))


async def _rederive(
    config: RunConfig,
    target: RecordedStep,
    start: Start,
    steps: Iterable[RecordedStep],
    report: Callable[[str], None],
    *,
    device: str,
    paths: tuple[Path, Path],
) -> Rederived:
    bundles = learning_bundles_of(config)
    roles = [actor.role for bundle in bundles for actor in bundle.actors]
    report(f"starting {len(roles)} actors on {device}: {', '.join(roles)}")
    policy_path, critic_path = paths
    async with actor_factory(config, device, bundles) as factory:
        learner, critic, reference = await asyncio.gather(
            factory.learner(policy_path),
            factory.critic(critic_path, policy_path),
            factory.reference(policy_path),
        )
        try:
            if start.path is not None:
                await learner.load(start.path / "learner")
                if critic is not None:
                    await critic.load(start.path / "critic")
                    critic.restore_version(start.state.critic_version)
            replay = Replay(config, target, learner=learner, critic=critic, reference=reference)
            versions = {
                "policy_version": start.state.policy_version,
                "critic_version": start.state.critic_version,
            }
            return await replay.run(steps, **versions, report=report)
        finally:
            await asyncio.gather(
                *(worker.close() for worker in (learner, critic, reference) if worker is not None)
            )
