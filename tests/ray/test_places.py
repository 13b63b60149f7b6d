"""Places of rollout workers on a real Ray cluster: reserving, waiting, releasing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from sppo_ray.launch.placement_pool import RayPlacementPool
from sppo_ray.planning.resources import Bundle

# CPUs; the cluster has 8: two in the run's group, one beside it needs 3, and 2 are left
WORKER = 3.0


@pytest.fixture
def places(ray_cluster: Any) -> Any:
    bundles = [Bundle("learner-0", 0.5, 0.0), Bundle("rollout-0", WORKER, 0.0), Bundle("reward", 0.25, 0.0)]
    group = placement_group([bundle.as_ray() for bundle in bundles])
    ray_cluster.get(group.ready(), timeout=60)
    places = RayPlacementPool(group, bundles)
    yield places
    places.close()
    remove_placement_group(group)
    assert groups() == []


def groups() -> list[str]:
    """States of the placement groups that were not given back."""
    return [entry["state"] for entry in placement_group_table().values() if entry["state"] != "REMOVED"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)


def test_the_worker_of_the_start_lives_in_the_runs_group(places: RayPlacementPool) -> None:
    place = places.of("rollout-0")
    assert (place.index, place.bundle.cpus, places.needs) == (1, WORKER, "3 CPU")


def test_an_added_worker_has_a_group_of_its_own_that_goes_back(places: RayPlacementPool) -> None:
    async def scenario() -> None:
        await asyncio.wait_for(places.reserve("rollout-1"), 60)  # 8 - 3.75 = 4.25 CPUs are free
        assert places.of("rollout-1").group is not places.of("rollout-0").group
        assert groups() == ["CREATED", "CREATED"]
        places.release("rollout-1")
        places.release("rollout-1")  # holds none any more: no error
        await until(lambda: groups() == ["CREATED"])

    asyncio.run(scenario())


def test_without_room_it_waits_and_takes_the_bundle_that_a_drained_worker_left(
    places: RayPlacementPool,
) -> None:
    async def scenario() -> None:
        await asyncio.wait_for(places.reserve("rollout-1"), 60)
        waiting = asyncio.ensure_future(places.reserve("rollout-2"))  # 1.25 CPUs are free
        await until(lambda: "PENDING" in groups())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        places.release("rollout-0")
        await asyncio.wait_for(waiting, 60)
        assert places.of("rollout-2").index == 1
        # the group that it waited for is gone
        await until(lambda: groups() == ["CREATED", "CREATED"])

    asyncio.run(scenario())


def test_giving_up_the_wait_leaves_nothing_behind(places: RayPlacementPool) -> None:
    async def scenario() -> None:
        await asyncio.wait_for(places.reserve("rollout-1"), 60)
        waiting = asyncio.ensure_future(places.reserve("rollout-2"))
        await until(lambda: "PENDING" in groups())
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: "PENDING" not in groups())
        assert groups() == ["CREATED", "CREATED"]

    asyncio.run(scenario())
