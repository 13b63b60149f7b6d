"""A training run that kills itself with SIGKILL at one point of one step: `python -m
tests.chaos.kill_at POINT STEP train ...`.

Everything runs as it does for a user; one method of the driver is wrapped, and dies when it is
called for the n-th time in the step. STEP is the number that the step will have in metrics.jsonl.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

UNDER_WAY_S = 0.005  # how long a remote call has been going on when its caller dies


@dataclass(frozen=True, slots=True)
class Point:
    """The `call`-th call of a method in a step; `under_way` = not before it, but while it is going
    on.
    """

    module: str
    owner: str
    method: str
    call: int = 1
    under_way: bool = False


POINTS = {
    "generating": Point("sppo_ray.rollout.pipeline", "RolloutBatch", "slot_of", call=10),
    "updating": Point("actors.handles", "LearnerGroup", "update", call=2, under_way=True),
    "syncing": Point("actors.handles", "RayRolloutWorker", "pull_weights", under_way=True),
    "evaluating": Point("sppo_ray.evaluation.sampler", "Sampler", "_grade", call=2),
    # trained, synced and logged, not yet saved
    "stepped": Point("sppo_ray.trainer.loop", "Trainer", "_checkpoint"),
    # after the learner's part
    "checkpointing": Point("actors.handles", "CriticGroup", "save", under_way=True),
}


class Counter:
    """Counts the calls of a point in the step that is to be the last."""

    def __init__(self, point: Point, step: int) -> None:
        self.point, self.last_step = point, step
        self.step = 0  # under way
        self.calls = 0

    def is_due(self) -> bool:
        self.calls += self.step == self.last_step
        return self.calls == self.point.call


def install(point: Point, step: int) -> None:
    """Wrap the point's method, and the trainer's step to know which one is under way."""
    counter = Counter(point, step)
    trainer = importlib.import_module("sppo_ray.trainer.loop").Trainer
    take_step = trainer._step

    async def counted_step(self: Any) -> None:
        counter.step = self.state.step + 1
        await take_step(self)

    trainer._step = counted_step
    owner = getattr(importlib.import_module(point.module), point.owner)
    method = getattr(owner, point.method)
    setattr(
        owner,
        point.method,
        _deadly_coroutine(method, counter)
        if inspect.iscoroutinefunction(method)
        else _deadly(method, counter),
    )


def _deadly(method: Callable[..., Any], counter: Counter) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if counter.is_due():
            die()
        return method(*arguments)

    return call


def _deadly_coroutine(method: Callable[..., Any], counter: Counter) -> Callable[..., Any]:
    async def call(*arguments: Any) -> Any:
        if not counter.is_due():
            return await method(*arguments)
        if counter.point.under_way:
            going_on = asyncio.ensure_future(method(*arguments))
            await asyncio.wait([going_on], timeout=UNDER_WAY_S)
        return die()

    return call


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


if __name__ == "__main__":
    from sppo_ray.cli.main import main

    install(POINTS[sys.argv[1]], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
