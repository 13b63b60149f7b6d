"""trace.json: what each process of a run did when, for https://ui.perfetto.dev.

An event a line, in Chrome's JSON array format. Its closing bracket may be missing, so the file of a
killed run opens, too, and a resumed run appends. A role is a process of the trace; a worker has one
thread, and further ones for calls that overlap. Times are microseconds since 1970.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sppo_ray.rundir.jsonlines import drop_torn_tail
from sppo_ray.rundir.layout import TRACE

ROLES = ("driver", "rollout", "learner", "critic", "reference", "reward")
_LANES = 1000  # of a worker, at most


class TraceWriter:
    """Writes trace.json from one event loop. `close()` it."""

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        path = run_dir / TRACE
        drop_torn_tail(path)
        is_new = not path.exists() or path.stat().st_size == 0
        self._file = path.open("a", encoding="utf-8", buffering=1)
        if is_new:
            self._file.write("[\n")
        self._clock = clock
        self._began = time.time() - clock()
        self._busy: defaultdict[str, set[int]] = defaultdict(set)  # lanes of a worker
        self._named: set[tuple[int, int]] = set()

    @contextlib.contextmanager
    def span(self, worker: str, name: str, **details: Any) -> Iterator[None]:
        """An event for the length of the block, also when it raises."""
        busy, start = self._busy[worker], self._clock()
        lane = next(lane for lane in itertools.count() if lane not in busy)
        busy.add(lane)
        try:
            yield
        finally:
            busy.discard(lane)
            self._write(worker, lane, name, start, details)

    def _write(self, worker: str, lane: int, name: str, start: float, details: Mapping[str, Any]) -> None:
        role, _, number = worker.partition("-")
        process, thread = ROLES.index(role) + 1, int(number or 0) * _LANES + lane + 1
        if (process, thread) not in self._named:
            self._named.add((process, thread))
            self._name("process_name", process, thread, role)
            self._name("thread_name", process, thread, worker if not lane else f"{worker} ({lane + 1})")
        event = {
            "name": name,
            "ph": "X",
            "ts": round((self._began + start) * 1e6),
            "dur": round((self._clock() - start) * 1e6),
            "pid": process,
            "tid": thread,
        }
        self._append(event | ({"args": dict(details)} if details else {}))

    def _name(self, kind: str, process: int, thread: int, name: str) -> None:
        self._append({"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}})

    def _append(self, event: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(event) + ",\n")

    def close(self) -> None:
        self._file.close()


def read_trace(run_dir: Path) -> list[dict[str, Any]]:
    """Read the events in the order of their ends."""
    text = (run_dir / TRACE).read_text(encoding="utf-8")
    return json.loads(text[: text.rfind("\n")].rstrip().rstrip(",") + "]")
