"""Monitoring of learner, critic, reference and verifier with FAKE processes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from sppo_ray.config import RecoverySettings
from sppo_ray.protocols import WorkerDied, WorkerFailure, WorkerTimeout
from sppo_ray.rollout.liveness import OPAQUE_FACTOR, WatchedRole

SETTINGS = RecoverySettings(probe_every_s=0.01, probe_timeout_s=0.5, stall_timeout_s=0.5)


class FakeProcess:
    """Answers unless it is frozen or dead; `progress` is its counter."""

    def __init__(self) -> None:
        self.progress, self.frozen, self.dead, self.pings = 0, False, False, 0

    async def ping(self) -> Mapping[str, Any]:
        self.pings += 1
        if self.dead:
            raise WorkerDied("learner-1", "died while a ping: killed")
        if self.frozen:
            await asyncio.sleep(3600)
        return {"progress": self.progress}


def watched(scenario: Any, settings: RecoverySettings = SETTINGS) -> WorkerFailure | None:
    """What the watch over two processes raises while `scenario(role, a, b)` goes on; None when
    nothing.
    """
    a, b = FakeProcess(), FakeProcess()
    role = WatchedRole({"learner-0": a.ping, "learner-1": b.ping})

    async def both() -> WorkerFailure | None:
        watch, story = (
            asyncio.ensure_future(role.watch(settings)),
            asyncio.ensure_future(scenario(role, a, b)),
        )
        await asyncio.wait({watch, story}, return_when=asyncio.FIRST_COMPLETED)
        for task in (watch, story):
            task.cancel()
        raised, told = await asyncio.gather(watch, story, return_exceptions=True)
        assert told is None or isinstance(told, asyncio.CancelledError)
        return raised if isinstance(raised, WorkerFailure) else None

    return asyncio.run(asyncio.wait_for(both(), 10))


def test_the_frozen_one_of_two_is_named() -> None:
    async def freeze(role: WatchedRole, a: FakeProcess, b: FakeProcess) -> None:
        with role.call("steady"):  # its partner waits for it in a collective, and answers
            b.frozen = True
            await asyncio.sleep(5)

    found = watched(freeze, SETTINGS.model_copy(update={"stall_timeout_s": 60.0}))
    assert isinstance(found, WorkerTimeout) and found.worker == "learner-1"
    assert "answered no probe" in str(found)


def test_a_death_is_detected_between_calls() -> None:
    async def die(role: WatchedRole, a: FakeProcess, b: FakeProcess) -> None:
        await asyncio.sleep(0.05)
        b.dead = True
        await asyncio.sleep(5)

    assert str(watched(die)) == "learner-1: died while a ping: killed"


def test_a_stuck_process_answers_and_gets_nothing_done() -> None:
    async def stick(role: WatchedRole, a: FakeProcess, b: FakeProcess) -> None:
        with role.call("steady"):
            while True:
                a.progress += 1
                await asyncio.sleep(0.01)

    found = watched(stick)
    assert found is not None and found.worker == "learner-1"
    assert "answers probes but got nothing done" in str(found)


@pytest.mark.parametrize("kind", [None, "opaque"])
def test_no_progress_is_required_without_counted_work(kind: Any) -> None:
    async def rest(role: WatchedRole, a: FakeProcess, b: FakeProcess) -> None:
        if kind is None:
            await asyncio.sleep(1.2)
            return
        with role.call(kind):
            await asyncio.sleep(1.2)

    assert watched(rest) is None


def test_work_that_begins_late_has_its_whole_time() -> None:
    async def late(role: WatchedRole, a: FakeProcess, b: FakeProcess) -> None:
        await asyncio.sleep(1.0)  # twice the time-out without progress, and without work
        with role.call("steady"):
            await asyncio.sleep(0.1)

    assert watched(late) is None


def test_probes_may_be_unanswered_during_file_access() -> None:
    async def save(role: WatchedRole, a: FakeProcess, b: FakeProcess) -> None:
        with role.call("opaque"):
            b.frozen = True
            await asyncio.sleep(0.7)  # more than the time-out of 0.5 s, less than two of them
            b.frozen = False

    assert OPAQUE_FACTOR == 2
    assert watched(save) is None


def test_a_frozen_observer_reports_no_loss() -> None:
    async def freeze_all(role: WatchedRole, a: FakeProcess, b: FakeProcess) -> None:
        import time

        for _ in range(3):
            await asyncio.sleep(0.05)
            time.sleep(1.2)  # the event loop itself stands still: longer than any time-out
        assert b.pings > 1

    assert watched(freeze_all) is None


class CountedTask(asyncio.Task[Any]):
    """A task that counts who waits for one."""

    callbacks = 0

    def add_done_callback(self, *arguments: Any, **keywords: Any) -> None:
        CountedTask.callbacks += 1
        super().add_done_callback(*arguments, **keywords)


def test_the_work_of_a_look_grows_with_the_processes_and_not_with_their_square() -> None:
    processes, answered = 100, 0

    async def ping(turns: int) -> Mapping[str, Any]:
        nonlocal answered
        for _ in range(turns):  # the answers come one by one
            await asyncio.sleep(0)
        answered += 1
        return {"progress": 1}

    async def look() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, work, **keywords: CountedTask(work, loop=loop, **keywords))
        role = WatchedRole({f"learner-{n}": partial(ping, n) for n in range(processes)})
        watch = asyncio.ensure_future(role.watch(SETTINGS))
        while answered < processes:
            await asyncio.sleep(0)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    CountedTask.callbacks = 0
    asyncio.run(asyncio.wait_for(look(), 10))
    assert CountedTask.callbacks < 10 * processes
