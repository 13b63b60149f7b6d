"""The process of each worker: name, process id, node and incarnation of every actor of a run.

status.json stores it as `actors`, so that a person with a debugger or a test can find a process.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class ProcessLocation(TypedDict):
    """The location of a process; null until it runs."""

    pid: int | None
    node_ip: str | None
    node_id: str | None


class ActorRow(ProcessLocation):
    """The newest incarnation of an actor."""

    name: str  # "learner-0"
    incarnation: int  # the first is 1
    since: float  # time of the request, seconds since 1970


class ActorRegistry:
    """One row for each name. Used from one event loop."""

    def __init__(
        self,
        locate: Callable[[ActorHandle], Awaitable[ProcessLocation]],
        on_change: Callable[[list[ActorRow]], None],
    ) -> None:
        self._locate = locate
        self._on_change = on_change
        self._rows: dict[str, ActorRow] = {}
        self._incarnations: Counter[str] = Counter()
        self._asking: set[asyncio.Task[None]] = set()

    def add(self, name: str, handle: ActorHandle) -> None:
        """Add a new actor under `name`; its process is looked up in the background."""
        self._incarnations[name] += 1
        row = self._rows[name] = ActorRow(
            name=name,
            incarnation=self._incarnations[name],
            pid=None,
            node_ip=None,
            node_id=None,
            since=time.time(),
        )
        task = asyncio.ensure_future(self._find(row, handle))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        self._on_change(self.rows())

    def remove(self, name: str) -> None:
        """Remove an actor."""
        if self._rows.pop(name, None) is not None:
            self._on_change(self.rows())

    def rows(self) -> list[ActorRow]:
        return [row.copy() for _, row in sorted(self._rows.items())]

    def missing(self) -> list[ActorRow]:
        """Actors whose process does not run yet."""
        return [row for row in self.rows() if row["pid"] is None]

    def close(self) -> None:
        for task in self._asking:
            task.cancel()

    async def _find(self, row: ActorRow, handle: ActorHandle) -> None:
        try:
            row.update(await self._locate(handle))
        except Exception:  # boundary: it died before it answered; calls on it raise the error
            return
        if self._rows.get(row["name"]) is row:
            self._on_change(self.rows())
