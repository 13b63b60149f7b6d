"""Write a heartbeat to the disk from a separate thread, which continues while the event loop and
its workers are busy.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

EVERY_S = 2.0
LOST_S = 45.0  # a run with an older heartbeat is dead; allows for a slow shared disk
SOONEST_S = 0.1  # minimum between two beats


class Wakeup:
    """`notify` ends `wait`. Can be used from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def notify(self) -> None:
        self._event.set()

    def wait(self, timeout_s: float) -> None:
        """Wait for a notification or the end of the time, and reset the event."""
        self._event.wait(timeout_s)
        self._event.clear()


@contextlib.contextmanager
def heartbeat(
    beat: Callable[[], None], wakeup: Wakeup | None = None, every_s: float = EVERY_S
) -> Iterator[None]:
    """Within the block, call `beat` every `every_s` seconds and soon after `wakeup.notify()`.

    OSErrors are ignored; the next beat tries again.
    """
    over, wakeup = threading.Event(), wakeup or Wakeup()

    def work() -> None:
        while not over.is_set():
            wakeup.wait(every_s)
            if over.is_set():
                return
            with contextlib.suppress(OSError):
                beat()
            over.wait(min(SOONEST_S, every_s))

    thread = threading.Thread(target=work, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        wakeup.notify()
        thread.join()
