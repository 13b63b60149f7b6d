"""A sign of life on the disk, from a thread of its own: it goes on while the event loop, or all of its workers, are busy."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

EVERY_S = 2.0


@contextlib.contextmanager
def heartbeat(beat: Callable[[], None], every_s: float = EVERY_S) -> Iterator[None]:
    """Call `beat` every `every_s` seconds for the length of the block. Its OSErrors are ignored: the next beat tries again."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(every_s):
            with contextlib.suppress(OSError):
                beat()

    thread = threading.Thread(target=work, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
