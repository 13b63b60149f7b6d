"""Where rollout workers live: a bundle of the run's placement group, or, once added, a placement group of their own.

    start        rollout-0 .. n-1 --> their bundles of the run's group
    added later  --> a bundle that a drained worker left behind, else a group of one bundle as soon as the cluster has room

Ray cannot give back single bundles of a group: those of the workers of the start stay with the run until it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sppo_ray.resources import Bundle

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

ROLLOUT = "rollout-"  # how the names of rollout workers begin
LOOK_EVERY_S = 0.5  # for a bundle of the run's own group, while Ray looks for room


@dataclass(frozen=True, slots=True)
class Place:
    """A bundle of a placement group."""

    group: PlacementGroup
    index: int


class RolloutPlaces:
    """The fleet's `Places` on a Ray cluster."""

    def __init__(
        self, group: PlacementGroup, bundles: Sequence[Bundle], *, on_release: Callable[[str], None] = lambda name: None
    ) -> None:
        """`bundles` are those of `group`, in its order; `on_release` hears who gave up a place."""
        self._on_release = on_release
        self._group = group
        self._held = {bundle.role: Place(group, i) for i, bundle in enumerate(bundles) if bundle.role.startswith(ROLLOUT)}
        self._bundle = bundles[next(iter(self._held.values())).index]
        self._free: list[Place] = []
        self.needs = self._bundle.needs

    def of(self, name: str) -> tuple[Place, Bundle]:
        """The place of a worker that has one, and what it offers."""
        return self._held[name], self._bundle

    async def reserve(self, name: str) -> None:
        """Wait for whichever comes first: a bundle that becomes free, or room for a group of one."""
        if self._free:
            self._held[name] = self._free.pop()
            return
        from ray.util.placement_group import placement_group, remove_placement_group

        group = placement_group([self._bundle.as_ray()])
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
            return Place(group, 0)
        finally:
            ready.cancel()

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
        """Give back what was reserved beside the run's own group."""
        for name in [name for name, place in self._held.items() if place.group is not self._group]:
            self.release(name)


async def _awaited(reference: Any) -> Any:
    return await reference
