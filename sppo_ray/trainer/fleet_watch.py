"""Looks after the living workers of a fleet: a probe every few seconds, and a look at both clocks (`Vitals`) after it.

    every tick, for each living worker:  ping --answer--> vitals    vitals --finding--> fine | suspect | dead --> fleet

A probe that is not answered holds up nothing: the clocks go on, and they decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from sppo_ray.config import RolloutSettings
from sppo_ray.trainer.fleet_members import Member
from sppo_ray.trainer.health import Finding
from sppo_ray.trainer.interfaces import WorkerFailure, WorkerTimeout

LOOKS = 4  # at least, within either time-out, however seldom probes are asked for


class Listener(Protocol):
    """Who is told what the watch found."""

    def lost(self, member: Member, failure: WorkerFailure) -> None: ...

    def suspected(self, member: Member) -> None: ...

    def recovered(self, member: Member) -> None: ...


class FleetWatch:
    """Watches `members()`, whoever that is at the time, and reports to `fleet`."""

    def __init__(
        self,
        fleet: Listener,
        members: Callable[[], Sequence[Member]],
        settings: RolloutSettings,
        clock: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._members = members
        self._settings = settings
        self._clock = clock
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._tick_s = min(settings.probe_every_s, settings.stall_timeout_s / LOOKS, settings.probe_timeout_s / LOOKS)

    async def run(self) -> None:
        """Until it is cancelled."""
        looked_at = self._clock()
        try:
            while True:
                await asyncio.sleep(self._tick_s)
                now = self._clock()
                self._look(now, late_by=now - looked_at - self._tick_s)
                looked_at = now
        finally:
            under_way = list(self._probes.values())
            for probe in under_way:
                probe.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _look(self, now: float, late_by: float) -> None:
        living = [member for member in self._members() if member.health.holds_weights]
        for member in living:
            if late_by > self._tick_s:  # this process was frozen or busy: answers may lie there that it has not read yet
                member.vitals.forgive(late_by)
            self._probe_unless_under_way(member)
            self._judge(member, now)

    def _probe_unless_under_way(self, member: Member) -> None:
        if member.name not in self._probes:
            probe = self._probes[member.name] = asyncio.ensure_future(self._probe(member))
            probe.add_done_callback(lambda _: self._probes.pop(member.name, None))

    async def _probe(self, member: Member) -> None:
        assert member.worker is not None
        incarnation = member.health.restarts
        try:
            tokens = int((await member.worker.ping())["tokens_generated"])
        except WorkerTimeout:
            return  # the clock says when that is too long
        except WorkerFailure as failure:
            if member.health.restarts == incarnation:
                self._fleet.lost(member, failure)
            return
        if member.health.restarts == incarnation:
            member.vitals.answered(self._clock(), tokens)

    def _judge(self, member: Member, now: float) -> None:
        found = self._finding(member, now)
        if found.is_dead:
            self._fleet.lost(member, WorkerTimeout(member.name, found.what))
        elif found.is_suspect:
            self._fleet.suspected(member)
        else:
            self._fleet.recovered(member)

    def _finding(self, member: Member, now: float) -> Finding:
        is_pulling = not member.verified.is_set()  # no token is due then, and the pull has a deadline of its own
        return member.vitals.finding(
            now,
            has_work=member.in_flight > 0 and not is_pulling,
            probe_timeout_s=self._settings.probe_timeout_s,
            stall_timeout_s=self._settings.stall_timeout_s,
        )
