"""Environments and tools of a user, for tests. They are imported by environment processes."""

from __future__ import annotations

import asyncio
import os
import random
import time

from sppo_ray.environments.base import Observation, Row
from sppo_ray.environments.guess_number import CEILINGS, GuessNumber


class Echo:
    """Repeats the action; certain actions make it fail."""

    def __init__(self, row: Row, seed: int, word: str = "") -> None:
        if row.ground_truth == "bad row":
            raise ValueError("this row is bad")
        self._seen: list[str] = []
        self._word = word
        self._seed = seed

    async def step(self, action: str) -> Observation:
        self._seen.append(action)
        match action:
            case "raise":
                raise RuntimeError("the game is broken")
            case "exit":
                raise SystemExit(3)
            case "bytes":
                return Observation(b"\x00")  # type: ignore[arg-type]
            case "megabyte":
                return Observation("x" * 2**20)
            case "oracle":
                return Observation("?", role="oracle")
            case "none":
                return None  # type: ignore[return-value]
            case "nan":
                return Observation(reward=float("nan"))
            case "hang":
                await asyncio.sleep(3600)
            case "block":
                time.sleep(3600)
            case "die":
                os._exit(9)
            case "wait":
                await asyncio.sleep(0.3)
            case "done":
                return Observation(reward=0.5, done=True, reason="over")
            case "pid":
                return Observation(str(os.getpid()))
            case "secrets":
                return Observation(os.environ.get("RAY_AUTH_TOKEN", "none"))
            case "open":
                return Observation(open("/etc/hostname").read())
        return Observation(f"{self._word}{self._seed}:" + ",".join(self._seen), reward=0.25)


class Plain:
    """Has a plain function as its step."""

    def __init__(self, row: Row, seed: int) -> None:
        self._count = 0

    def step(self, action: str) -> Observation:
        if action == "block":
            time.sleep(3600)
        if action == "nap":
            time.sleep(0.5)
        self._count += 1
        return Observation(str(self._count))


class NoStep:
    def __init__(self, row: Row, seed: int) -> None:
        pass


class NoSeed:
    def __init__(self, row: Row) -> None:
        pass

    def step(self, action: str) -> Observation:
        return Observation()


def add(a: int, b: float = 1.0) -> float:
    """Add two numbers.

    This paragraph is not for the policy.
    """
    return a + b


async def shout(text: str) -> str:
    """Make it loud."""
    await asyncio.sleep(0)
    return text.upper()


def broken(text: str) -> str:
    """Fail."""
    raise OSError("the disk is gone")


def untyped(text) -> str:
    """Has no schema."""
    return text


def undocumented(text: str) -> str:
    return text


class Drawn:
    """Draws its task in `reset`, and answers with it."""

    def __init__(self, row: Row, seed: int, system: str = "", share: bool = True) -> None:
        self._row, self._seed, self._system, self._share = row, seed, system, share
        self._task = ""

    async def reset(self, seed: int) -> list[dict[str, str]]:
        if self._row.ground_truth == "no task":
            raise ValueError("there is no task for this row")
        draw = random.Random(seed if self._share else f"{seed} {self._seed}")
        self._task = f"{self._row.prompt}{draw.randint(0, 10**6)}"
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, {"role": "user", "content": self._task}]

    async def step(self, action: str) -> Observation:
        return Observation(self._task, done=action == "done")


class Numbers:
    """Takes numbered rows, with a plain `reset`."""

    def __init__(self, row: Row, seed: int) -> None:
        self._row = row

    def reset(self, seed: int) -> str:
        return f"w1 {self._row.extra['index']} {self._row.extra['seed']}"

    def step(self, action: str) -> Observation:
        return Observation(done=True, reward=1.0)


class BadReset(Numbers):
    def reset(self, seed: int) -> str:
        return b"bytes"  # type: ignore[return-value]


def make_drawn(row: Row, seed: int) -> Drawn:
    return Drawn(row, seed)


def hang(text: str) -> str:
    """Never return."""
    time.sleep(3600)
    return text


def surrogate(text: str) -> str:
    """Return what is no Unicode."""
    return f"{text}\ud800"


def flag(on: bool, note: str | None = None) -> str:
    """Say what it was given."""
    return f"{on!r} {note!r}"


def listed(items: list[int]) -> int:
    """Add up."""
    return sum(items)


class HiddenNumber(GuessNumber):
    """The game guess-number, which draws its range and its number itself."""

    def __init__(self, row: Row, seed: int) -> None:
        assert row.ground_truth == ""
        self._seed = seed

    def reset(self, seed: int) -> str:
        draw = random.Random(seed)
        self._ceiling = draw.randint(*CEILINGS)
        self._number = draw.randint(1, self._ceiling)
        return f"{self._ceiling}?"
