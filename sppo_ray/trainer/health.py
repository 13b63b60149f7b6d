"""Health of one rollout worker as a pure state machine: no Ray, no clock of its own.

    PENDING --placed--> RESTARTING --started--> STALE --synced--> HEALTHY <--recovered-- SUSPECT
                         ^    |                   |                |  |  '--suspected-------^  |
                         |   died                died            died '--drain--> DRAINING <---|  drain
                         |    v                   v                v                  |        |
                         '-- DEAD <---------------+----------------+------------------|--------'  died
                      restart                                                         v
                                                        any state --retire-->      RETIRED  <-- a draining one that died

Two promises: nothing reaches HEALTHY from DEAD without passing STALE and a verified weight sync, and nothing that
drains ever takes work again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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


_TRANSITIONS: dict[tuple[Health, Event], Health] = {
    (Health.PENDING, Event.PLACED): Health.RESTARTING,
    (Health.RESTARTING, Event.STARTED): Health.STALE,
    (Health.RESTARTING, Event.DIED): Health.DEAD,
    (Health.STALE, Event.SYNCED): Health.HEALTHY,
    (Health.STALE, Event.DIED): Health.DEAD,
    (Health.HEALTHY, Event.SYNCED): Health.HEALTHY,
    (Health.HEALTHY, Event.SUSPECTED): Health.SUSPECT,
    (Health.HEALTHY, Event.DIED): Health.DEAD,
    (Health.HEALTHY, Event.DRAIN): Health.DRAINING,
    (Health.SUSPECT, Event.RECOVERED): Health.HEALTHY,
    (Health.SUSPECT, Event.SUSPECTED): Health.SUSPECT,
    (Health.SUSPECT, Event.SYNCED): Health.HEALTHY,
    (Health.SUSPECT, Event.DIED): Health.DEAD,
    (Health.SUSPECT, Event.DRAIN): Health.DRAINING,
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
        return replace(self, state=target, version=None if target in (Health.DEAD, Health.RETIRED) else self.version)

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
