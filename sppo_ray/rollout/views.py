"""Reports of the rollout fleet: rows of the fleet table and results of weight syncs."""

from __future__ import annotations

from dataclasses import dataclass

from sppo_ray.protocols import WeightReceipt


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One row of the fleet table."""

    name: str
    state: str
    version: int | None
    restarts: int
    in_flight: int
    finished: int
    busy_seconds: float = 0.0  # seconds with requests in flight, since the start of the fleet


@dataclass(frozen=True, slots=True)
class PendingView:
    """A worker that the cluster has no room for yet."""

    worker: str
    waiting_for: str  # "2 CPU, 1 GPU"
    since: float  # seconds since 1970


@dataclass(frozen=True, slots=True)
class FleetSync:
    """Result of a weight sync of the fleet."""

    receipts: tuple[WeightReceipt, ...]  # one per worker
    max_probe_difference: float  # nats, over all workers
