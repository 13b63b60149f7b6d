"""Call what runs an event loop of its own, also where one runs already (a notebook)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sppo_ray.launch.shutdown import Forced
from sppo_ray.launch.train import in_daemon_thread

T = TypeVar("T")


def wait_for(work: Callable[[], T], interrupt: Callable[[], None] = lambda: None) -> T:
    """Return the result of `work`. Below a running event loop it is called in a thread, and Ctrl-C
    calls `interrupt`; elsewhere it is called as it is and receives signals itself. A second Ctrl-C
    raises KeyboardInterrupt.
    """
    try:
        return _in_thread(work, interrupt) if _is_below_a_loop() else work()
    except (Forced, asyncio.CancelledError) as ended:
        raise KeyboardInterrupt(str(ended)) from None


def _is_below_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _in_thread(work: Callable[[], T], interrupt: Callable[[], None]) -> T:
    future = in_daemon_thread(work)
    try:
        return future.result()
    except KeyboardInterrupt:
        interrupt()
    try:
        return future.result()
    except KeyboardInterrupt:
        interrupt()
        raise
