"""What the rollout fleet keeps of each worker and of each request, and what it shows of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from sppo_ray.trainer.health import WorkerHealth
from sppo_ray.trainer.interfaces import RolloutWorker, WeightReceipt
from sppo_ray.types import RolloutRequest, SamplingSettings, Trajectory


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One row of the fleet table."""

    name: str
    state: str
    version: int | None
    restarts: int
    in_flight: int
    finished: int


@dataclass(frozen=True, slots=True)
class PendingView:
    """A worker that the cluster has no room for yet."""

    worker: str
    waiting_for: str  # "2 CPU, 1 GPU"
    since: float  # seconds since 1970


@dataclass(frozen=True, slots=True)
class FleetSync:
    """What a weight sync of the fleet proved: one receipt a worker, and the worst probe difference in nats."""

    receipts: tuple[WeightReceipt, ...]
    max_probe_difference: float


@dataclass(slots=True, eq=False)
class Asked:
    """A request on its way, and the queue of the caller that waits for its trajectory."""

    request: RolloutRequest
    sampling: SamplingSettings
    sink: asyncio.Queue[Trajectory | Exception]


@dataclass(slots=True, eq=False)
class Member:
    """A worker of the fleet through all its incarnations."""

    name: str
    worker: RolloutWorker | None = None
    health: WorkerHealth = field(default_factory=WorkerHealth)
    in_flight: int = 0
    finished: int = 0
    tokens_seen: int = -1
    progress_at: float = 0.0
    pending_since: float = 0.0  # seconds since 1970
    verified: asyncio.Event = field(default_factory=asyncio.Event)  # cleared while a pull is not yet proven
    last_failure: str = ""
    starting: asyncio.Task[None] | None = None  # brings it up, for the first time or again; done = nobody is at it
    serving: set[asyncio.Task[None]] = field(default_factory=set)  # one a batch
    is_leaving: bool = False  # asked to go, and not gone yet

    @property
    def is_starting(self) -> bool:
        return self.starting is not None and not self.starting.done()

    def view(self) -> WorkerView:
        health = self.health
        return WorkerView(self.name, health.state.value, health.version, health.restarts, self.in_flight, self.finished)
