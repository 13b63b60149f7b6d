"""What each worker was busy with, by the calls that are made of it.

    learner = timed(learner, "learner", times)      its calls are spans of "train", "sync", ...
    times.next_step(...)                            time/learner/train, .../sync, .../wait
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar, cast

from sppo_ray.rundir.trace import TraceWriter
from sppo_ray.trainer.timing import StageClock
from sppo_ray.types import RolloutRequest, SamplingSettings, Trajectory

W = TypeVar("W")
_FILES = dict.fromkeys(("save", "load", "export"), "checkpoint")
LABELS = {
    "rollout": {"generate": "generate"}
    | dict.fromkeys(("pull_weights", "receive_weights", "serve_received"), "sync"),
    "learner": {"update": "train", "recompute_logprobs": "train", "publish": "sync"} | _FILES,
    "critic": dict.fromkeys(("values", "update", "token_values", "token_update"), "critic") | _FILES,
    "reference": {"logprobs": "reference"},
    "reward": {"score": "reward"},
    "environment": {"step": "answer"},
}
"""What a worker of a role is busy with during a call, by the method's name."""


class WorkerTimes:
    """The seconds of each worker since the last `next_step`, each under one label: "wait" while no
    call is outstanding.

    An engine that takes over weights while it has requests is busy with "sync". `now` is a
    monotonic clock in seconds.
    """

    def __init__(
        self, now: Callable[[], float] = time.perf_counter, trace: TraceWriter | None = None
    ) -> None:
        self._now = now
        self._trace = trace
        self._started = now()
        self._clocks: dict[str, StageClock] = {}

    def add(self, worker: str) -> StageClock:
        """Count a worker, also while it has nothing to do."""
        if worker not in self._clocks:
            self._clocks[worker] = StageClock(self._now, start=self._started)
        return self._clocks[worker]

    @contextmanager
    def span(self, worker: str, label: str, call: str, **details: Any) -> Iterator[None]:
        """The worker is busy with `label` for the length of the block; `call` is its name in the
        trace.
        """
        traced = nullcontext() if self._trace is None else self._trace.span(worker, call, **details)
        with traced, self.add(worker).stage(label):
            yield

    def next_step(self, engines: Iterable[str]) -> dict[str, float]:
        """time/<role>/<label>: shares of the step that ends here, the mean of the role's workers.
        An engine that is not among `engines` is gone.
        """
        here = set(engines)
        for worker in here:
            self.add(worker)
        for worker in [name for name in self._clocks if role_of(name) == "rollout" and name not in here]:
            del self._clocks[worker]
        seconds: dict[str, dict[str, float]] = {}
        for worker, clock in self._clocks.items():
            labels = clock.exclusive("sync")
            step = clock.next_step()
            labels["wait"] = step["seconds/other"]
            of_role = seconds.setdefault(role_of(worker), {"step": 0.0})
            for label, value in (labels | {"step": step["seconds/step"]}).items():
                of_role[label] = of_role.get(label, 0.0) + value
        self._started = self._now()
        return {
            f"time/{role}/{label}": value / labels["step"]
            for role, labels in sorted(seconds.items())
            for label, value in sorted(labels.items())
            if label != "step" and labels["step"] > 0
        }


def role_of(worker: str) -> str:
    """The role of "rollout-0" is "rollout"."""
    return worker.partition("-")[0]


def timed(worker: W, name: str, times: WorkerTimes) -> W:
    """The worker, whose calls are spans of `times`; `name` is "learner" or "rollout-0"."""
    times.add(name)
    return cast(W, _Timed(worker, name, times))


class _Timed:
    """Passes everything on to a worker."""

    def __init__(self, worker: Any, name: str, times: WorkerTimes) -> None:
        self._worker, self._times, self._span_name = worker, times, name
        self._labels = LABELS[role_of(name)]

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._worker, method)
        label = self._labels.get(method)
        if label is None:
            return found

        async def call(*arguments: Any, **keywords: Any) -> Any:
            with self._times.span(self._span_name, label, method):
                return await found(*arguments, **keywords)

        async def generate(
            requests: Sequence[RolloutRequest], sampling: SamplingSettings
        ) -> AsyncIterator[Sequence[Trajectory]]:
            with self._times.span(self._span_name, label, method, requests=len(requests)):
                async for burst in found(requests, sampling):
                    yield burst

        return generate if method == "generate" else call
