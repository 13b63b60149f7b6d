"""Token buckets: how many requests a caller may make, in bounded memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_CALLERS = 10_000
BURST_S = 3.0  # a bucket holds what comes in during so many seconds


class RateLimiter:
    """`rate` requests a second and caller, saved up for BURST_S seconds."""

    def __init__(self, rate: float, *, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._capacity, self._now = rate, max(1.0, rate * BURST_S), now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> (requests left, when)
        self._lock = threading.Lock()

    def wait_s(self, key: str) -> float:
        """Take one request: 0.0 when it may pass, else the seconds until the next one may."""
        if self._rate <= 0:
            return 0.0
        now = self._now()
        with self._lock:
            left, then = self._buckets.pop(key, (self._capacity, now))
            left = min(self._capacity, left + (now - then) * self._rate)
            allowed = left >= 1.0
            self._buckets[key] = (left - 1.0 if allowed else left, now)
            if len(self._buckets) > MAX_CALLERS:
                self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._rate
