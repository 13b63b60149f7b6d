"""Where a step's seconds went: one context manager for named stages.

    with clock.stage("update"):
        await learner.update(minibatch)

Stages may overlap (that is the point of streaming) and may run across the end of a step: a stage's
intervals are cut at the step's borders, so that each second is counted in one step only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

Interval = tuple[float, float]


class StageClock:
    """Collects intervals between two calls of `next_step`. Made for one asyncio thread; `now` is a
    monotonic clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter, *, start: float | None = None) -> None:
        """`start`: when the step under way began; now by default."""
        self._now = now
        self._keys = count()
        self._open: dict[int, tuple[str, float]] = {}  # key -> (stage, start)
        self._closed: dict[str, list[Interval]] = {}
        self._start = now() if start is None else start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body, also when it raises or is cancelled."""
        key = next(self._keys)
        self._open[key] = (name, self._now())
        try:
            yield
        finally:
            _, start = self._open.pop(key)
            self._closed.setdefault(name, []).append((start, self._now()))

    @property
    def current(self) -> str | None:
        """The stage that was entered last and is still under way; None between stages."""
        return next((name for name, _ in reversed(list(self._open.values()))), None)

    @property
    def wall_seconds(self) -> float:
        """Seconds since the step began."""
        return self._now() - self._start

    def report(self) -> dict[str, float]:
        """The step so far.

        seconds/step           its wall time
        seconds/<stage>        time during which the stage was under way (overlapping intervals of
                               one stage count once,
                               so that no stage exceeds the step)
        seconds/other          time in which no stage was
        """
        return self._report(self._now())

    def next_step(self) -> dict[str, float]:
        """`report()` of the step that ends here; what is still under way goes on in the next
        one.
        """
        now = self._now()
        report = self._report(now)
        self._start = now
        self._closed.clear()
        return report

    def exclusive(self, first: str) -> dict[str, float]:
        """The step so far by stage, each second once: in an overlap, stage `first` comes before the
        others, which come by name.
        """
        seconds: dict[str, float] = {}
        earlier: list[Interval] = []
        stages = self._intervals(self._now())
        for name in sorted(stages, key=lambda name: (name != first, name)):
            together = earlier + stages[name]
            seconds[name], earlier = _covered(together) - _covered(earlier), together
        return seconds

    def _report(self, now: float) -> dict[str, float]:
        wall = now - self._start
        stages = self._intervals(now)
        covered = _covered([interval for intervals in stages.values() for interval in intervals])
        report = {"seconds/step": wall, "seconds/other": max(wall - covered, 0.0)}
        report |= {f"seconds/{name}": _covered(intervals) for name, intervals in stages.items()}
        return report

    def _intervals(self, now: float) -> dict[str, list[Interval]]:
        stages = {name: list(intervals) for name, intervals in self._closed.items()}
        for name, start in self._open.values():
            stages.setdefault(name, []).append((start, now))
        return {
            name: [(max(start, self._start), end) for start, end in intervals]
            for name, intervals in stages.items()
        }


def _covered(intervals: list[Interval]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total
