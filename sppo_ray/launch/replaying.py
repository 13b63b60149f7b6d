"""A replay's actors: learner, critic and reference of the run, placed as it placed them, without engines and verifier."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from sppo_ray.config import RunConfig
from sppo_ray.launch.cluster import cluster_with_room, place
from sppo_ray.launch.materials import model_paths
from sppo_ray.launch.spawner import Spawner
from sppo_ray.launch.workers import learning_workers
from sppo_ray.resources import learning_bundles_of
from sppo_ray.trainer.replay import Rederived, Replay
from sppo_ray.trainer.replay_records import RecordedStep, Start


def rederive(
    config: RunConfig, target: RecordedStep, start: Start, steps: Iterable[RecordedStep], report: Callable[[str], None]
) -> Rederived:
    """Take `steps` again from `start` on, on a Ray cluster as `config.cluster` says; nothing of it is left afterwards.

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
    from ray.util.placement_group import remove_placement_group

    bundles = learning_bundles_of(config)
    report(f"starting {len(bundles)} actors on {device}: {', '.join(bundle.role for bundle in bundles)}")
    group = await place(config, bundles)
    spawner = Spawner(config, group, device, bundles)
    try:
        learner, critic, reference = await learning_workers(spawner, config, *paths)
        try:
            if start.path is not None:
                await learner.load(start.path / "learner")
                if critic is not None:
                    await critic.load(start.path / "critic")
                    critic.restore_version(start.state.critic_version)
            replay = Replay(config, target, learner=learner, critic=critic, reference=reference)
            versions = {"policy_version": start.state.policy_version, "critic_version": start.state.critic_version}
            return await replay.run(steps, **versions, report=report)
        finally:
            await asyncio.gather(*(worker.close() for worker in (learner, critic, reference) if worker is not None))
    finally:
        spawner.close()
        remove_placement_group(group)
