"""SIGINT and SIGTERM to a real process, once and twice, before and during training."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, contextlib, sys, time
from sppo_ray.launch.shutdown import EndSignals, Forced

async def train(signals):
    stop = asyncio.Event()
    with signals.stopping(stop.set):
        print("training", flush=True)
        try:
            await stop.wait()
            print("finishing the step", flush=True)
            await asyncio.sleep(0 if sys.argv[1] == "once" else 60)
        finally:
            print("closed", flush=True)
    return 143 if signals.terminated else 0

with EndSignals().taken() as signals:
    try:
        if sys.argv[1] == "early":
            print("preparing", flush=True)
            time.sleep(60)
        sys.exit(asyncio.run(train(signals)))
    except Forced as forced:
        print(forced, flush=True)
        raise
"""


def received(how: str, *numbers: signal.Signals) -> tuple[int, list[str]]:
    """Exit code and what the program printed, each signal sent after a further line of it."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = []
    for number in numbers:
        printed.append(process.stdout.readline().strip())
        process.send_signal(number)
    printed += process.stdout.read().splitlines()
    return process.wait(timeout=30), printed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_once_ends_it_in_good_order(number: signal.Signals, code: int) -> None:
    assert received("once", number) == (code, ["training", "finishing the step", "closed"])


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGTERM, signal.SIGINT, 143),
        (signal.SIGINT, signal.SIGINT, 130),
        (signal.SIGINT, signal.SIGTERM, 130),
    ],
)
def test_twice_ends_it_at_once_with_the_first_one_s_code(
    first: signal.Signals, second: signal.Signals, code: int
) -> None:
    ended, printed = received("twice", first, second)
    assert (ended, printed) == (
        code,
        ["training", "finishing the step", "closed", f"ended at once by {first.name}"],
    )


def test_three_times_waits_for_nothing() -> None:
    program = PROGRAM.replace(
        'print("closed", flush=True)', 'print("closing", flush=True); await asyncio.sleep(60)'
    )
    process = subprocess.Popen([sys.executable, "-c", program, "twice"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in ("training", "finishing the step", "closing"):
        assert process.stdout.readline().strip() == line
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_before_it_trains_there_is_nothing_to_finish(number: signal.Signals, code: int) -> None:
    assert received("early", number) == (code, ["preparing", f"ended at once by {number.name}"])
