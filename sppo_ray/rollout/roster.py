"""The list of workers of a rollout fleet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sppo_ray.config import RolloutSettings
from sppo_ray.rollout.health import Health, RestartBudget
from sppo_ray.rollout.member import Member
from sppo_ray.rollout.views import PendingView, WorkerView


class Roster:
    """The members of a fleet, in the order in which they were added."""

    def __init__(self, settings: RolloutSettings, clock: Callable[[], float]) -> None:
        self._window_s = settings.restart_window_s
        self._clock = clock
        self._next_index = 0  # names are unique in a run
        self._restarts_of_removed = 0
        self.wanted = settings.workers  # target number of workers
        self.members: list[Member] = []
        for _ in range(settings.workers):
            self.add()

    def add(self, **fields: Any) -> Member:
        """Add a member with a new name."""
        member = Member(f"rollout-{self._next_index}", RestartBudget(self._window_s), **fields)
        self._next_index += 1
        self.members.append(member)
        return member

    def remove(self, member: Member) -> None:
        self.members.remove(member)
        self._restarts_of_removed += member.health.restarts

    @property
    def active(self) -> list[Member]:
        """Members that are neither draining nor retired."""
        return [m for m in self.members if m.health.state not in (Health.DRAINING, Health.RETIRED)]

    def living(self) -> list[Member]:
        """Return the members that take part in weight syncs."""
        return [member for member in self.members if member.health.holds_weights]

    @property
    def restarts(self) -> int:
        return self._restarts_of_removed + sum(member.health.restarts for member in self.members)

    @property
    def is_settled(self) -> bool:
        """Whether no member is starting or draining."""
        at_rest = (Health.HEALTHY, Health.SUSPECT, Health.RETIRED)
        return all(member.health.state in at_rest and not member.is_leaving for member in self.members)

    def view(self) -> list[WorkerView]:
        now = self._clock()
        return [member.view(now) for member in self.members]

    def pending(self, needs: str) -> list[PendingView]:
        """Return the members without a place. `needs` describes the resources of one worker."""
        waiting = [member for member in self.members if member.health.state is Health.PENDING]
        return [PendingView(member.name, needs, member.pending_since) for member in waiting]
