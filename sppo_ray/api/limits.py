"""Limit the requests of each caller by token buckets, in bounded memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_CALLERS = 10_000
BURST_S = 3.0  # a bucket holds the requests of this many seconds


class RateLimiter:
    """Allows `rate` requests per second and caller, with bursts of BURST_S seconds."""

    def __init__(self, rate: float, *, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._capacity, self._now = rate, max(1.0, rate * BURST_S), now
        # key -> (requests left, when)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, key: str) -> float:
        """Count one request; return 0.0 when it is allowed, else the seconds to wait."""
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
