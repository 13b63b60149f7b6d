"""The registry of processes, with FAKE handles."""

from __future__ import annotations

import asyncio
from typing import Any

from sppo_ray.launch.actor_registry import ActorRegistry


def test_the_newest_incarnation_of_each_name() -> None:
    told: list[list[dict[str, Any]]] = []

    async def locate(handle: int | None) -> dict[str, Any]:
        await asyncio.sleep(0)
        if handle is None:
            raise RuntimeError("it died before it could say")
        return {"pid": handle, "node_ip": "10.0.0.1", "node_id": "n"}

    async def scenario() -> list[tuple[str, int, int | None]]:
        registry = ActorRegistry(locate, told.append)
        registry.add("learner-0", 100)
        assert [row["name"] for row in registry.missing()] == ["learner-0"]
        registry.add("critic-0", None)
        await asyncio.sleep(0.01)
        assert [row["name"] for row in registry.missing()] == ["critic-0"]
        registry.add("rollout-0", 102)
        registry.add("learner-0", 103)  # before anybody knows where rollout-0 runs
        await asyncio.sleep(0.01)
        registry.remove("rollout-0")
        registry.remove("rollout-0")
        return [(row["name"], row["incarnation"], row["pid"]) for row in registry.rows()]

    assert asyncio.run(scenario()) == [("critic-0", 1, None), ("learner-0", 2, 103)]
    assert [(row["name"], row["pid"]) for row in told[-1]] == [("critic-0", None), ("learner-0", 103)]


def test_a_late_answer_of_an_earlier_incarnation_changes_nothing() -> None:
    answers: list[asyncio.Future[dict[str, Any]]] = []

    async def locate(handle: int) -> dict[str, Any]:
        answers.append(asyncio.get_running_loop().create_future())
        return await answers[-1]

    async def scenario() -> list[dict[str, Any]]:
        registry = ActorRegistry(locate, lambda rows: None)
        registry.add("reward", 1)
        await asyncio.sleep(0)
        registry.add("reward", 2)
        await asyncio.sleep(0)
        answers[1].set_result({"pid": 2, "node_ip": "a", "node_id": "n"})
        answers[0].set_result({"pid": 1, "node_ip": "a", "node_id": "n"})
        await asyncio.sleep(0.01)
        return registry.rows()

    assert [(row["incarnation"], row["pid"]) for row in asyncio.run(scenario())] == [(2, 2)]
