"""Placement of a run's actors: a bundle of the run's placement group for each; rollout workers
added later get a placement group of their own.

    start        every actor --> its bundle of the run's group
    added later
        --> a bundle that a drained worker left behind, else a group of one bundle as soon as the cluster has room

Ray cannot release single bundles of a group, so the bundles of the first workers stay with the run
until it ends.
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sppo_ray.config import RunConfig
from sppo_ray.config.evaluation import EvaluationConfig
from sppo_ray.errors import UserError
from sppo_ray.planning.resources import Bundle
from sppo_ray.rollout.tasks import drop_task

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

ROLLOUT = "rollout-"  # prefix of the names of rollout workers
LOOK_EVERY_S = 0.5  # interval of checks for a free bundle of the run's group while Ray looks for room


async def reserve_group(config: RunConfig | EvaluationConfig, bundles: Sequence[Bundle]) -> PlacementGroup:
    """Reserve a placement group of `bundles`. Raises UserError when it is not ready within
    ready_timeout_s.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group(
        [bundle.as_ray() for bundle in bundles], strategy=config.cluster.placement.upper()
    )
    try:
        await asyncio.wait_for(_awaited(group.ready()), config.cluster.ready_timeout_s)
    except TimeoutError:
        free = ray.available_resources()
        remove_placement_group(group)
        raise UserError(
            f"waited {config.cluster.ready_timeout_s:.0f} s for {sum(b.cpus for b in bundles):g} CPUs and "
            f"{sum(b.gpus for b in bundles):g} GPUs, free are "
            f"{free.get('CPU', 0):g} and {free.get('GPU', 0):g}: another job holds the rest; stop it, add "
            "nodes, or "
            "raise cluster.ready_timeout_s"
        ) from None
    return group


@dataclass(frozen=True, slots=True)
class Place:
    """A bundle of a placement group, or an actor's part of one that several actors share."""

    group: PlacementGroup
    index: int
    bundle: Bundle  # of the actor


class RayPlacementPool:
    """Maps each actor's name to its place; implements the fleet's `PlacementPool`."""

    def __init__(
        self,
        group: PlacementGroup,
        bundles: Sequence[Bundle],
        *,
        on_release: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`bundles` are those of `group`, in order. `on_release` receives the name of a worker
        whose place was released.
        """
        self._group = group
        actors = [(i, actor) for i, bundle in enumerate(bundles) for actor in bundle.actors]
        self._held = {actor.role: Place(group, i, actor) for i, actor in actors}
        self._workers = [actor for _, actor in actors if actor.role.startswith(ROLLOUT)]  # all equal
        self._free: list[Place] = []
        self._on_release = on_release

    @property
    def needs(self) -> str:
        """Resources of one rollout worker."""
        return self._workers[0].needs

    def of(self, name: str) -> Place:
        """Return the place of an actor that has one."""
        return self._held[name]

    async def reserve(self, name: str) -> None:
        """Wait for a free bundle or room for a new group of one bundle, whichever comes first."""
        if self._free:
            self._held[name] = self._free.pop()
            return
        from ray.util.placement_group import placement_group, remove_placement_group

        group = placement_group([self._workers[0].as_ray()])
        try:
            self._held[name] = await self._first(group)
        finally:
            if name not in self._held or self._held[name].group is not group:
                remove_placement_group(group)

    async def _first(self, group: PlacementGroup) -> Place:
        ready = asyncio.ensure_future(_awaited(group.ready()))
        try:
            while not (await asyncio.wait({ready}, timeout=LOOK_EVERY_S))[0]:
                if self._free:
                    return self._free.pop()
            ready.result()
            return Place(group, 0, self._workers[0])
        finally:
            drop_task(ready)

    def release(self, name: str) -> None:
        place = self._held.pop(name, None)
        if place is None:
            return
        self._on_release(name)
        if place.group is self._group:
            self._free.append(place)
            return
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(place.group)

    def close(self) -> None:
        """Release all groups other than the run's own."""
        for name in [name for name, place in self._held.items() if place.group is not self._group]:
            self.release(name)


async def _awaited(reference: Awaitable[Any]) -> Any:
    return await reference
