"""Health of a rollout worker as a pure state machine, vital signs of a process, restart budget.

    PENDING --placed--> RESTARTING --started--> STALE --synced--> HEALTHY <--recovered-- SUSPECT
                         ^    |                   |                |  |  '--suspected-------^  |
                         |   died                died            died '--drain--> DRAINING <---|  drain
                         |    v                   v                v                  |        |
                         '-- DEAD <---------------+----------------+------------------|--------'  died
                      restart                                                         v
                                                        any state --retire-->      RETIRED  <-- a draining one that died

Two invariants hold: a DEAD worker reaches HEALTHY only through STALE and a verified weight sync,
and a DRAINING worker never takes work again.

`Vitals` records answers to probes and progress separately, because a frozen process answers no
probe, and a stuck process answers probes but makes no progress.
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Health(StrEnum):
    PENDING = "PENDING"  # the cluster has no room for it yet
    RESTARTING = "RESTARTING"  # its process is starting
    STALE = "STALE"  # running, but its weights are not verified
    HEALTHY = "HEALTHY"  # serves a verified version; only this state gets requests
    SUSPECT = "SUSPECT"  # makes no progress; keeps its requests, gets no more
    DRAINING = "DRAINING"  # will be removed: keeps its requests and is synced, gets no more
    DEAD = "DEAD"
    RETIRED = "RETIRED"  # removed: drained, or its restarts are used up


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
    OUTDATED = "outdated"  # the run returned to a checkpoint and reuses version numbers


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
    """An event that is not allowed in the state. It is a bug of the caller, not of the worker."""


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """State, number of restarts and verified version (None before the first sync after a start)."""

    state: Health = Health.RESTARTING
    restarts: int = 0
    version: int | None = None

    def after(self, event: Event, version: int | None = None) -> WorkerHealth:
        """Return the health after an event. `version` belongs to SYNCED only and is required there.

        Raises IllegalTransition.
        """
        if event is Event.RETIRE:
            return replace(self, state=Health.RETIRED, version=None)
        target = _TRANSITIONS.get((self.state, event))
        if target is None:
            raise IllegalTransition(f"{event} in state {self.state}")
        if (event is Event.SYNCED) != (version is not None):
            raise IllegalTransition(
                f"{event} with version {version}: a version comes with synced, and only with it"
            )
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
        """Whether weight syncs include the worker."""
        return self.state in (Health.STALE, Health.HEALTHY, Health.SUSPECT, Health.DRAINING)

    @property
    def is_gone(self) -> bool:
        """Whether the worker's results must be ignored."""
        return self.state in (Health.DEAD, Health.RETIRED)


def restart_delay_s(restarts: int, *, base: float = 1.0, limit: float = 60.0) -> float:
    """Return the seconds to wait before restart number `restarts` + 1: 1, 2, 4, ... up to
    `limit`.
    """
    return min(limit, base * 2.0**restarts)


@dataclass(slots=True)
class RestartBudget:
    """Counts the restarts in a sliding window, so that rare failures never use up the budget."""

    window_s: float
    _times: deque[float] = field(default_factory=deque)

    def spend(self, now: float) -> None:
        """Add a restart."""
        self._times.append(now)

    def spent(self, now: float) -> int:
        """Return the number of restarts in the last `window_s` seconds."""
        while self._times and now - self._times[0] >= self.window_s:
            self._times.popleft()
        return len(self._times)


@dataclass(frozen=True, slots=True)
class Symptoms:
    """Parts of a finding's text: "answered no probe for 31 s: {silent}", "answers probes but
    {stalled} for 300 s: {cause}".
    """

    silent: str
    stalled: str
    cause: str


ENGINE_SYMPTOMS = Symptoms(silent="frozen, or cut off", stalled="made no token", cause="engine stuck")


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of a check of a process: fine (both false), suspect or dead. `what` is the message."""

    what: str = ""
    is_suspect: bool = False
    is_dead: bool = False


@dataclass(slots=True)
class Vitals:
    """Times of a process's last answer and last progress, in seconds of a monotonic clock.

    Receiving work counts as progress.
    """

    answered_at: float
    progress_at: float
    counter: int = -1  # progress counter in the last answer (engine: generated tokens)

    @classmethod
    def starting(cls, now: float) -> Vitals:
        return cls(answered_at=now, progress_at=now)

    def answered(self, now: float, counter: int) -> None:
        """Record an answer to a probe. It counts as progress only if the counter changed."""
        self.answered_at = now
        if counter != self.counter:
            self.counter, self.progress_at = counter, now

    def progressed(self, now: float) -> None:
        """Record progress: results, new weights, or the end of an idle time."""
        self.progress_at = now

    def forgive(self, seconds: float) -> None:
        """Exclude the last `seconds`, in which the observer itself was frozen."""
        self.answered_at += seconds
        self.progress_at += seconds

    def finding(
        self,
        now: float,
        *,
        has_work: bool,
        probe_timeout_s: float,
        stall_timeout_s: float,
        symptoms: Symptoms = ENGINE_SYMPTOMS,
    ) -> Finding:
        """Return suspect after half of a time-out and dead after all of it. Progress is only
        required with `has_work`.
        """
        silent, stalled = now - self.answered_at, now - self.progress_at if has_work else 0.0
        if silent >= probe_timeout_s:
            return Finding(f"answered no probe for {silent:.0f} s: {symptoms.silent}", is_dead=True)
        if stalled >= stall_timeout_s:
            what = f"answers probes but {symptoms.stalled} for {stalled:.0f} s: {symptoms.cause}"
            return Finding(what, is_dead=True)
        return Finding(is_suspect=silent >= probe_timeout_s / 2 or stalled >= stall_timeout_s / 2)
