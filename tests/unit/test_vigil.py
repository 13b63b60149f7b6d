"""The watch over learner, critic, reference and verifier with FAKE processes: two clocks, and who is named."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from sppo_ray.config import RecoverySettings
from sppo_ray.trainer.interfaces import WorkerDied, WorkerFailure, WorkerTimeout
from sppo_ray.trainer.vigil import OPAQUE_FACTOR, Vigil

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
    """What the watch over two processes raises while `scenario(vigil, a, b)` goes on; None when nothing."""
    a, b = FakeProcess(), FakeProcess()
    vigil = Vigil({"learner-0": a.ping, "learner-1": b.ping})

    async def both() -> WorkerFailure | None:
        watch, story = asyncio.ensure_future(vigil.watch(settings)), asyncio.ensure_future(scenario(vigil, a, b))
        await asyncio.wait({watch, story}, return_when=asyncio.FIRST_COMPLETED)
        for task in (watch, story):
            task.cancel()
        raised, told = await asyncio.gather(watch, story, return_exceptions=True)
        assert told is None or isinstance(told, asyncio.CancelledError)
        return raised if isinstance(raised, WorkerFailure) else None

    return asyncio.run(asyncio.wait_for(both(), 10))


def test_the_frozen_one_of_two_is_named() -> None:
    async def freeze(vigil: Vigil, a: FakeProcess, b: FakeProcess) -> None:
        with vigil.call("steady"):  # its partner waits for it in a collective, and answers
            b.frozen = True
            await asyncio.sleep(5)

    found = watched(freeze, SETTINGS.model_copy(update={"stall_timeout_s": 60.0}))
    assert isinstance(found, WorkerTimeout) and found.worker == "learner-1"
    assert "answered no probe" in str(found)


def test_a_death_is_seen_while_nobody_waits_for_the_process() -> None:
    async def die(vigil: Vigil, a: FakeProcess, b: FakeProcess) -> None:
        await asyncio.sleep(0.05)
        b.dead = True
        await asyncio.sleep(5)

    assert str(watched(die)) == "learner-1: died while a ping: killed"


def test_a_stuck_process_answers_and_gets_nothing_done() -> None:
    async def stick(vigil: Vigil, a: FakeProcess, b: FakeProcess) -> None:
        with vigil.call("steady"):
            while True:
                a.progress += 1
                await asyncio.sleep(0.01)

    found = watched(stick)
    assert found is not None and found.worker == "learner-1"
    assert "answers probes but got nothing done" in str(found)


@pytest.mark.parametrize("kind", [None, "opaque"])
def test_without_work_that_counts_standing_still_is_no_stall(kind: Any) -> None:
    async def rest(vigil: Vigil, a: FakeProcess, b: FakeProcess) -> None:
        if kind is None:
            await asyncio.sleep(1.2)
            return
        with vigil.call(kind):
            await asyncio.sleep(1.2)

    assert watched(rest) is None


def test_work_that_begins_late_has_its_whole_time() -> None:
    async def late(vigil: Vigil, a: FakeProcess, b: FakeProcess) -> None:
        await asyncio.sleep(1.0)  # twice the time-out without progress, and without work
        with vigil.call("steady"):
            await asyncio.sleep(0.1)

    assert watched(late) is None


def test_reading_and_writing_files_may_deafen_a_process_for_a_while() -> None:
    async def save(vigil: Vigil, a: FakeProcess, b: FakeProcess) -> None:
        with vigil.call("opaque"):
            b.frozen = True
            await asyncio.sleep(0.7)  # more than the time-out of 0.5 s, less than two of them
            b.frozen = False

    assert OPAQUE_FACTOR == 2
    assert watched(save) is None


def test_a_frozen_observer_blames_nobody() -> None:
    async def freeze_all(vigil: Vigil, a: FakeProcess, b: FakeProcess) -> None:
        import time

        for _ in range(3):
            await asyncio.sleep(0.05)
            time.sleep(1.2)  # the event loop itself stands still: longer than any time-out
        assert b.pings > 1

    assert watched(freeze_all) is None
