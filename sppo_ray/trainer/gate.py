"""What a run can be asked to do between two steps: pause, go on, write a checkpoint, stop.

The one who asks and the loop share a gate; the loop looks at it after each step, and waits at it while it is paused.
"""

from __future__ import annotations

import asyncio
from pathlib import Path


class Gate:
    """Made for one asyncio thread."""

    def __init__(self) -> None:
        self.is_paused = False  # asked for; the loop gets there with the end of the step under way
        self.is_stopping = False
        self.held_because: str | None = None  # a guardrail's diagnosis; None when it is open or a person closed it
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()
        self._checkpoints: list[asyncio.Future[Path]] = []

    def pause(self, because: str | None = None) -> None:
        """`because`: the diagnosis of a guardrail that holds the run, which nobody need be looking after."""
        self.is_paused = True
        self.held_because = because
        self._changed.set()

    def resume(self) -> None:
        self.is_paused = False
        self.held_because = None
        self._changed.set()

    def stop(self) -> None:
        self.is_stopping = True
        self._stop.set()
        self._changed.set()

    def ask_for_checkpoint(self) -> asyncio.Future[Path]:
        """Done when a checkpoint of the steps so far, the one under way included, is on the disk."""
        asked: asyncio.Future[Path] = asyncio.get_running_loop().create_future()
        self._checkpoints.append(asked)
        self._changed.set()
        return asked

    @property
    def wants_checkpoint(self) -> bool:
        return bool(self._checkpoints)

    @property
    def is_closed(self) -> bool:
        """Whether the loop has to wait."""
        return self.is_paused and not self.is_stopping

    def checkpoint_written(self, path: Path) -> None:
        for asked in self._checkpoints:
            if not asked.done():
                asked.set_result(path)
        self._checkpoints.clear()

    async def stop_asked(self) -> None:
        """Wait until the run is to stop; at once from then on."""
        await self._stop.wait()

    async def changed(self) -> None:
        """Wait until something was asked since the last call."""
        await self._changed.wait()
        self._changed.clear()
