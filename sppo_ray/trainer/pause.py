"""Passes commands to the training loop: pause, resume, write a checkpoint, stop.

The loop checks the gate after each step, and waits at it while the run is paused.
"""

from __future__ import annotations

import asyncio
from pathlib import Path


class PauseGate:
    """The commands to a run. Used from one asyncio thread."""

    def __init__(self) -> None:
        self.is_paused = False  # takes effect at the end of the current step
        self.is_stopping = False
        # diagnosis of the guardrail that paused the run; None after a pause by command
        self.held_because: str | None = None
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()
        self._checkpoints: list[asyncio.Future[Path]] = []

    def pause(self, because: str | None = None) -> None:
        """Pause the run. `because`: the diagnosis when a guardrail pauses it; such a pause has a
        time-out.
        """
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
        """Request a checkpoint after the current step. The future holds its path when written."""
        written: asyncio.Future[Path] = asyncio.get_running_loop().create_future()
        self._checkpoints.append(written)
        self._changed.set()
        return written

    @property
    def wants_checkpoint(self) -> bool:
        return bool(self._checkpoints)

    @property
    def is_closed(self) -> bool:
        """Whether the loop has to wait."""
        return self.is_paused and not self.is_stopping

    def checkpoint_written(self, path: Path) -> None:
        for written in self._checkpoints:
            if not written.done():
                written.set_result(path)
        self._checkpoints.clear()

    async def stop_asked(self) -> None:
        """Wait until a stop is requested."""
        await self._stop.wait()

    async def changed(self) -> None:
        """Wait until a command has arrived since the last call."""
        await self._changed.wait()
        self._changed.clear()
