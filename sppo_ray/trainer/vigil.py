"""Watches the processes of a role beside their work: one that answers no probe, or makes no progress, is lost, and named.

    every tick, for each process:   probe --answer--> when it last answered, how far it is      two clocks --> WorkerTimeout
    every call on the role:         with vigil.call("steady")                                   a death --> WorkerDied

A frozen process answers no probe; a stuck one answers all of them, and its counter stands still. The waits for calls
have deadlines of their own, made for the slowest call; this is what finds a loss in half a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal, NoReturn

from sppo_ray.config import RecoverySettings
from sppo_ray.trainer.health import Vitals
from sppo_ray.trainer.interfaces import WorkerTimeout

Kind = Literal["steady", "opaque"]
"""steady: the process counts what it gets done. opaque: it does not, and may be deaf meanwhile (files being read or written)."""
Ping = Callable[[], Awaitable[Mapping[str, Any]]]
OPAQUE_FACTOR = 2.0  # PyTorch and safetensors let other threads run while they write: a tenth of a second of silence a gigabyte
LOOK_S = 1.0  # how often the clocks are looked at while a probe is on its way
LOOKS_A_TIMEOUT = 4  # and at least so often in the shorter of the two time-outs


class Vigil:
    """Over the processes `pings` (name -> ask for {"progress": count}). Used from one event loop."""

    def __init__(self, pings: Mapping[str, Ping], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pings = dict(pings)
        self._clock = clock
        self._calls: Counter[Kind] = Counter()
        self._steady_since = self._opaque_until = clock()

    @contextlib.contextmanager
    def call(self, kind: Kind) -> Iterator[None]:
        """A call is outstanding for the length of the block."""
        if kind == "steady" and not self._calls[kind]:
            self._steady_since = self._clock()
        self._calls[kind] += 1
        try:
            yield
        finally:
            self._calls[kind] -= 1
            if kind == "opaque":
                self._opaque_until = self._clock()

    async def watch(self, settings: RecoverySettings) -> NoReturn:
        """Until it is cancelled. Raises WorkerFailure when a process is lost."""
        watches = [asyncio.ensure_future(self._watch_one(name, ping, settings)) for name, ping in self._pings.items()]
        try:
            await asyncio.gather(*watches)
            raise AssertionError("a watch has no end")
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    async def _watch_one(self, name: str, ping: Ping, settings: RecoverySettings) -> None:
        vitals = Vitals.starting(self._clock())
        shortest = min(settings.probe_timeout_s, settings.stall_timeout_s) / LOOKS_A_TIMEOUT
        while True:
            await self._probe(name, ping, vitals, settings, tick_s=min(LOOK_S, shortest))
            await self._on_time(asyncio.sleep, min(settings.probe_every_s, shortest), vitals)

    async def _probe(self, name: str, ping: Ping, vitals: Vitals, settings: RecoverySettings, *, tick_s: float) -> None:
        """One probe. The clocks are looked at while it is on its way: it may never come back."""
        probe = asyncio.ensure_future(ping())
        try:
            while not probe.done():
                await self._on_time(lambda tick_s: asyncio.wait({probe}, timeout=tick_s), tick_s, vitals)
                if not probe.done():
                    self._judge(name, vitals, settings)
            with contextlib.suppress(WorkerTimeout):  # the clock says when that is too long
                vitals.answered(self._clock(), int(probe.result()["progress"]))
            self._judge(name, vitals, settings)
        finally:
            probe.cancel()

    async def _on_time(self, wait: Callable[[float], Awaitable[Any]], seconds: float, vitals: Vitals) -> None:
        """Wait so long. When it took much longer, this process was frozen or had no time: that is held against nobody."""
        began = self._clock()
        await wait(seconds)
        late = self._clock() - began - seconds
        if late > seconds:
            vitals.forgive(late)

    def _judge(self, name: str, vitals: Vitals, settings: RecoverySettings) -> None:
        now = self._clock()
        silent = now - max(vitals.answered_at, self._opaque_until)
        allowed = settings.probe_timeout_s * (OPAQUE_FACTOR if self._calls["opaque"] else 1.0)
        if silent >= allowed:
            raise WorkerTimeout(name, f"answered no probe for {silent:.0f} s: frozen, swapped out, or its node is cut off")
        stalled = now - max(vitals.progress_at, self._steady_since)
        if self._calls["steady"] and not self._calls["opaque"] and stalled >= settings.stall_timeout_s:
            raise WorkerTimeout(name, f"answers probes but got nothing done for {stalled:.0f} s: stuck")
