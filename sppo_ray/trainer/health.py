"""Health of one rollout worker as a pure state machine, its two clocks and its restart budget: no Ray, no clock of its own.

    PENDING --placed--> RESTARTING --started--> STALE --synced--> HEALTHY <--recovered-- SUSPECT
                         ^    |                   |                |  |  '--suspected-------^  |
                         |   died                died            died '--drain--> DRAINING <---|  drain
                         |    v                   v                v                  |        |
                         '-- DEAD <---------------+----------------+------------------|--------'  died
                      restart                                                         v
                                                        any state --retire-->      RETIRED  <-- a draining one that died

Two promises: nothing reaches HEALTHY from DEAD without passing STALE and a verified weight sync, and nothing that
drains ever takes work again.

Probes and progress are timed apart (`Vitals`): a frozen process answers no probe, a wedged engine answers each of them
and makes no token, and neither sign stands in for the other.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Health(StrEnum):
    PENDING = "PENDING"  # asked for, and the cluster has no room for it yet
    RESTARTING = "RESTARTING"  # its process is coming up
    STALE = "STALE"  # up, but its weights are not known to be the policy's
    HEALTHY = "HEALTHY"  # serves a verified version; the only state that is given work
    SUSPECT = "SUSPECT"  # has work and shows no progress; keeps its work, gets no more
    DRAINING = "DRAINING"  # on its way out: keeps its work and is synced, gets no more
    DEAD = "DEAD"
    RETIRED = "RETIRED"  # taken out for good: drained, or its restarts are used up


class Event(StrEnum):
    PLACED = "placed"
    STARTED = "started"
    SYNCED = "synced"
    SUSPECTED = "suspected"
    RECOVERED = "recovered"
    DIED = "died"
    RESTART = "restart"
    DRAIN = "drain"
    RETIRE = "retire"
    OUTDATED = "outdated"  # the versions are counted anew, after a return to a checkpoint


_TRANSITIONS: dict[tuple[Health, Event], Health] = {
    (Health.PENDING, Event.PLACED): Health.RESTARTING,
    (Health.RESTARTING, Event.STARTED): Health.STALE,
    (Health.RESTARTING, Event.DIED): Health.DEAD,
    (Health.STALE, Event.SYNCED): Health.HEALTHY,
    (Health.STALE, Event.DIED): Health.DEAD,
    (Health.STALE, Event.OUTDATED): Health.STALE,
    (Health.HEALTHY, Event.SYNCED): Health.HEALTHY,
    (Health.HEALTHY, Event.SUSPECTED): Health.SUSPECT,
    (Health.HEALTHY, Event.DIED): Health.DEAD,
    (Health.HEALTHY, Event.DRAIN): Health.DRAINING,
    (Health.HEALTHY, Event.OUTDATED): Health.STALE,
    (Health.SUSPECT, Event.RECOVERED): Health.HEALTHY,
    (Health.SUSPECT, Event.SUSPECTED): Health.SUSPECT,
    (Health.SUSPECT, Event.SYNCED): Health.HEALTHY,
    (Health.SUSPECT, Event.DIED): Health.DEAD,
    (Health.SUSPECT, Event.DRAIN): Health.DRAINING,
    (Health.SUSPECT, Event.OUTDATED): Health.STALE,
    (Health.DRAINING, Event.SYNCED): Health.DRAINING,
    (Health.DRAINING, Event.DIED): Health.RETIRED,
    (Health.DEAD, Event.DIED): Health.DEAD,
    (Health.DEAD, Event.RESTART): Health.RESTARTING,
}


class IllegalTransition(Exception):
    """An event that the state does not know: a bug of the caller, never of the worker."""


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """State, restarts so far and the version last verified (None until the first sync of this incarnation)."""

    state: Health = Health.RESTARTING
    restarts: int = 0
    version: int | None = None

    def after(self, event: Event, version: int | None = None) -> WorkerHealth:
        """The health after an event. `version` comes with SYNCED and only with it.

        Raises IllegalTransition.
        """
        if event is Event.RETIRE:
            return replace(self, state=Health.RETIRED, version=None)
        target = _TRANSITIONS.get((self.state, event))
        if target is None:
            raise IllegalTransition(f"{event} in state {self.state}")
        if (event is Event.SYNCED) != (version is not None):
            raise IllegalTransition(f"{event} with version {version}: a version comes with synced, and only with it")
        if event is Event.SYNCED:
            return replace(self, state=target, version=version)
        if event is Event.RESTART:
            return WorkerHealth(state=target, restarts=self.restarts + 1)
        is_unknown = event is Event.OUTDATED or target in (Health.DEAD, Health.RETIRED)
        return replace(self, state=target, version=None if is_unknown else self.version)

    @property
    def takes_work(self) -> bool:
        return self.state is Health.HEALTHY

    @property
    def holds_weights(self) -> bool:
        """Whether a weight sync reaches it."""
        return self.state in (Health.STALE, Health.HEALTHY, Health.SUSPECT, Health.DRAINING)

    @property
    def is_gone(self) -> bool:
        """Whether what it still delivers is not to be trusted."""
        return self.state in (Health.DEAD, Health.RETIRED)


def restart_delay_s(restarts: int, *, base: float = 1.0, limit: float = 60.0) -> float:
    """Seconds to wait before restart number `restarts` + 1: 1, 2, 4, ... up to the limit."""
    return min(limit, base * 2.0**restarts)


@dataclass(slots=True)
class RestartBudget:
    """How often a worker was restarted lately: one that fails once a week is not worn out by the end of a month."""

    window_s: float
    _times: deque[float] = field(default_factory=deque)

    def spend(self, now: float) -> None:
        """Book a restart."""
        self._times.append(now)

    def spent(self, now: float) -> int:
        """Restarts of the last `window_s` seconds."""
        while self._times and now - self._times[0] >= self.window_s:
            self._times.popleft()
        return len(self._times)


@dataclass(frozen=True, slots=True)
class Finding:
    """What the clocks say of a worker: fine (both false), to be watched, or dead; `what` is for people."""

    what: str = ""
    is_suspect: bool = False
    is_dead: bool = False


@dataclass(slots=True)
class Vitals:
    """When one incarnation of a worker last answered a probe, and when it last made a token or was given work. Seconds of one
    monotonic clock."""

    answered_at: float
    progress_at: float
    tokens: int = -1  # its counter, as last told

    @classmethod
    def starting(cls, now: float) -> Vitals:
        return cls(answered_at=now, progress_at=now)

    def answered(self, now: float, tokens: int) -> None:
        """A probe came back with the number of tokens made so far. Unchanged, it is a sign of life and none of progress."""
        self.answered_at = now
        if tokens != self.tokens:
            self.tokens, self.progress_at = tokens, now

    def progressed(self, now: float) -> None:
        """It delivered a response, took over weights, or was idle until now."""
        self.progress_at = now

    def forgive(self, seconds: float) -> None:
        """Nobody looked for so long (the observer was frozen itself): that time is held against no worker."""
        self.answered_at += seconds
        self.progress_at += seconds

    def finding(self, now: float, *, has_work: bool, probe_timeout_s: float, stall_timeout_s: float) -> Finding:
        """Suspect after half of a time-out, dead after the whole. Without work, only probes count."""
        silent, stalled = now - self.answered_at, now - self.progress_at if has_work else 0.0
        if silent >= probe_timeout_s:
            return Finding(f"answered no probe for {silent:.0f} s: frozen, or cut off", is_dead=True)
        if stalled >= stall_timeout_s:
            return Finding(f"answers probes but made no token for {stalled:.0f} s: engine wedged", is_dead=True)
        return Finding(is_suspect=silent >= probe_timeout_s / 2 or stalled >= stall_timeout_s / 2)
