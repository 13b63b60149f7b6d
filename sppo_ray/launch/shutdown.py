"""Handle SIGINT and SIGTERM: the first ends a run after the current step, the second at once.

first    before training: at once; during training: after the current step, with a checkpoint
second   at once, in every state; exit code 143 when SIGTERM came first, else 130
third    the kernel kills the process, and the reaper of the local cluster cleans up (`cluster.py`)
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM)


class Forced(SystemExit):
    """A second signal ends the run at once. Carries the exit code: 143 for SIGTERM, 130 for
    SIGINT.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"ended at once by {self.number.name}"


class EndSignals:
    """Counts received signals and acts on them. Used from the main thread; `take` installs the
    handlers.
    """

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Callable[[], None] = lambda: None

    @property
    def terminated(self) -> bool:
        return signal.SIGTERM in self.received

    @contextlib.contextmanager
    def taken(self) -> Iterator[EndSignals]:
        """Handle both signals within the block, see `take`."""
        before = {number: signal.getsignal(number) for number in _ENDING}
        self.take()
        try:
            yield self
        finally:
            if in_main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def take(self) -> None:
        """Install the handlers, replacing any others (Ray installs its own when it is
        initialised).
        """
        if in_main_thread():
            for number in _ENDING:
                signal.signal(number, self._handle)

    @contextlib.contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Within the block, in a running event loop, the first signal calls `stop` and the second
        raises Forced. An `interrupt` before the block counts as the first.
        """
        self._loop, self._stop = asyncio.get_running_loop(), stop
        self.take()
        if self.received:
            stop()
        try:
            yield
        finally:
            self._loop = None

    def interrupt(self) -> None:
        """Act as SIGINT does, for a run in another thread than the main one, which alone receives
        signals (`sppo_ray.library.waiting`). Before `stopping` it takes effect there.
        """
        self.received.append(signal.SIGINT)
        if self._loop is not None:
            is_first = len(self.received) == 1
            self._loop.call_soon_threadsafe(self._stop if is_first else self._end_now)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))
        if self._loop is None:
            raise Forced(self.received[0])
        if len(self.received) == 1:
            self._loop.call_soon_threadsafe(self._stop)
            return
        for either in _ENDING:
            signal.signal(either, signal.SIG_DFL)
        self._loop.call_soon_threadsafe(self._end_now)

    def _end_now(self) -> None:
        raise Forced(self.received[0])


def in_main_thread() -> bool:
    """Whether this is the thread that receives signals."""
    return threading.current_thread() is threading.main_thread()
