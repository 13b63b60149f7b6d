"""Which process is which worker: name, process id, node and incarnation of every actor of a run.

It is kept in status.json as `actors`, for whoever has to find a process: a person with a debugger, a test that kills it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

Locate = Callable[[Any], Awaitable[dict[str, Any]]]  # handle -> {"pid", "node_ip", "node_id"}


class Roster:
    """One row for each name: its newest incarnation. Used from one event loop.

    A row is {"name": "learner-0", "incarnation": 1, "pid", "node_ip", "node_id", "since"}; the first incarnation is number 1,
    pid and node are null until the process is up, and `since` is when it was asked for (seconds since 1970).
    """

    def __init__(self, locate: Locate, on_change: Callable[[list[dict[str, Any]]], None]) -> None:
        self._locate = locate
        self._on_change = on_change
        self._rows: dict[str, dict[str, Any]] = {}
        self._incarnations: Counter[str] = Counter()
        self._asking: set[asyncio.Task[None]] = set()

    def add(self, name: str, handle: Any) -> None:
        """An actor was made under `name`; where it runs is found out in the background."""
        self._incarnations[name] += 1
        nowhere = {"pid": None, "node_ip": None, "node_id": None}
        row = {"name": name, "incarnation": self._incarnations[name], **nowhere, "since": time.time()}
        self._rows[name] = row
        task = asyncio.ensure_future(self._find(row, handle))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        self._on_change(self.rows())

    def remove(self, name: str) -> None:
        """Nobody of that name is wanted any more."""
        if self._rows.pop(name, None) is not None:
            self._on_change(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        return [dict(row) for _, row in sorted(self._rows.items())]

    def missing(self) -> list[dict[str, Any]]:
        """Those whose process is not up yet: they wait for their place, or start."""
        return [row for row in self.rows() if row["pid"] is None]

    def close(self) -> None:
        for task in self._asking:
            task.cancel()

    async def _find(self, row: dict[str, Any], handle: Any) -> None:
        try:
            row |= await self._locate(handle)
        except Exception:  # boundary: it died before it could answer; whoever needs it hears of that from its own call
            return
        if self._rows.get(row["name"]) is row:
            self._on_change(self.rows())
