"""A sign of life on the disk, from a thread of its own: it goes on while the event loop, or all of its workers, are busy."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

EVERY_S = 2.0
SOONEST_S = 0.1  # between two beats, however much there is to tell


class News:
    """Something changed that the next beat tells: `tell` brings that beat forward. From any thread."""

    def __init__(self) -> None:
        self._there = threading.Event()

    def tell(self) -> None:
        self._there.set()

    def wait(self, timeout_s: float) -> None:
        """Until there is news or the time is over; what was told is then known."""
        self._there.wait(timeout_s)
        self._there.clear()


@contextlib.contextmanager
def heartbeat(beat: Callable[[], None], news: News | None = None, every_s: float = EVERY_S) -> Iterator[None]:
    """Call `beat` every `every_s` seconds, and soon after any `news`, for the length of the block. Its OSErrors are ignored: the
    next beat tries again."""
    over, news = threading.Event(), news or News()

    def work() -> None:
        while not over.is_set():
            news.wait(every_s)
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
        news.tell()
        thread.join()
