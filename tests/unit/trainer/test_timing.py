"""The stage clock with a fake time."""

from __future__ import annotations

import asyncio

import pytest

from sppo_ray.trainer.timing import StageClock


class HandClock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def wind(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def hand() -> HandClock:
    return HandClock()


@pytest.fixture
def clock(hand: HandClock) -> StageClock:
    return StageClock(now=hand)


def test_stages_add_up_to_the_step(clock: StageClock, hand: HandClock):
    with clock.stage("update"):
        hand.wind(2.0)
    hand.wind(0.5)
    with clock.stage("sync"):
        hand.wind(1.0)
    with clock.stage("update"):
        hand.wind(3.0)
    assert clock.wall_seconds == 6.5
    assert clock.report() == {
        "seconds/step": 6.5,
        "seconds/other": 0.5,
        "seconds/update": 5.0,
        "seconds/sync": 1.0,
    }


def test_overlapping_stages_each_get_their_time_and_the_rest_is_not_negative(
    clock: StageClock, hand: HandClock
):
    # generate 0-4, update 3-5: together they cover 0-5, and each second of generate counts as
    # generate
    generate, update = clock.stage("generate-wait"), clock.stage("update")
    generate.__enter__()
    hand.wind(3.0)
    update.__enter__()
    hand.wind(1.0)
    generate.__exit__(None, None, None)
    hand.wind(1.0)
    update.__exit__(None, None, None)
    assert clock.report() == {
        "seconds/step": 5.0,
        "seconds/other": 0.0,
        "seconds/generate-wait": 4.0,
        "seconds/update": 2.0,
    }


def test_a_stage_that_overlaps_itself_counts_once(clock: StageClock, hand: HandClock):
    with clock.stage("score"):
        hand.wind(1.0)
        with clock.stage("score"):
            hand.wind(1.0)
        hand.wind(1.0)
    assert clock.report()["seconds/score"] == 3.0


def test_a_stage_across_the_end_of_a_step_is_shared_out(clock: StageClock, hand: HandClock):
    with clock.stage("generate-wait"):
        hand.wind(2.0)
        first = clock.next_step()
        hand.wind(3.0)
    hand.wind(1.0)
    second = clock.next_step()
    assert (first["seconds/step"], first["seconds/generate-wait"]) == (2.0, 2.0)
    assert (second["seconds/step"], second["seconds/generate-wait"], second["seconds/other"]) == (
        4.0,
        3.0,
        1.0,
    )
    assert clock.report() == {"seconds/step": 0.0, "seconds/other": 0.0}


def test_a_stage_that_fails_is_timed(clock: StageClock, hand: HandClock):
    with pytest.raises(RuntimeError), clock.stage("update"):
        hand.wind(1.5)
        raise RuntimeError
    assert clock.report()["seconds/update"] == 1.5


def test_it_works_between_tasks():
    clock = StageClock()

    async def work(stage: str, seconds: float) -> None:
        with clock.stage(stage):
            await asyncio.sleep(seconds)

    async def step() -> None:
        await asyncio.gather(work("generate-wait", 0.10), work("update", 0.05), work("update", 0.10))

    asyncio.run(step())
    report = clock.report()
    assert report["seconds/generate-wait"] == pytest.approx(0.10, abs=0.08)
    assert report["seconds/update"] <= report["seconds/step"]
