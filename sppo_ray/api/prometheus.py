"""Export the jobs as Prometheus metrics, computed from the index at each scrape, without counters
that a restart would lose.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from sppo_ray import __version__
from sppo_ray.api.schemas import Job, JobState

SHOWN_ENDED = 50  # number of ended jobs that are exported, so that a scrape stays small
_FIGURES = (
    ("step", "Steps done"),
    ("steps", "Steps in all"),
    ("budget_s", "Seconds of training after which the run ends, where it has such a limit"),
    ("eta_s", "Seconds left"),
    ("reward", "Mean reward of the newest step"),
    ("accuracy", "Newest held-out accuracy"),
    ("tokens_per_second", "Response tokens trained on, over the newest step's wall time"),
    ("policy_version", "Policy version"),
    ("restarts", "Restarts of the run"),
    ("samples", "Samples trained on"),
    ("tokens", "Response tokens generated"),
    ("seconds", "Seconds of training"),
    ("wanted_workers", "Rollout workers asked for"),
    ("updated", "Unix time of the trainer's last sign of life"),
)


class _Jobs:
    def __init__(self, jobs: Sequence[Job], *, ray_up: bool, streams: int) -> None:
        self._jobs, self._ray_up, self._streams = jobs, ray_up, streams

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("sppo_ray", "The server", value={"version": __version__})
        yield GaugeMetricFamily(
            "sppo_ray_ray_up", "Whether Ray's job server answers", value=float(self._ray_up)
        )
        yield GaugeMetricFamily("sppo_ray_open_streams", "Open event and log streams", value=self._streams)
        by_state = GaugeMetricFamily("sppo_ray_jobs", "Jobs by state", labels=["state"])
        counts = Count(job.state for job in self._jobs)
        for state in JobState:
            by_state.add_metric([state], counts[state])
        yield by_state
        shown = _shown(self._jobs)
        for field, meaning in _FIGURES:
            yield _gauge(f"sppo_ray_job_{field}", meaning, [(job, getattr(job, field)) for job in shown])
        yield _gauge(
            "sppo_ray_job_alerts",
            "Alarms of guardrails that are up",
            [(job, len(job.alerts)) for job in shown],
        )
        yield from _fleets(shown)


def _gauge(name: str, meaning: str, values: Iterable[tuple[Job, float | None]]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=["job", "algorithm"])
    for job, value in values:
        if value is not None:
            family.add_metric([job.id, job.algorithm or ""], float(value))
    return family


def _fleets(jobs: Sequence[Job]) -> Iterator[Metric]:
    workers = GaugeMetricFamily("sppo_ray_job_workers", "Rollout workers by state", labels=["job", "state"])
    in_flight = GaugeMetricFamily("sppo_ray_job_in_flight", "Requests that workers hold", labels=["job"])
    pending = GaugeMetricFamily(
        "sppo_ray_job_pending_workers", "Workers that wait for resources", labels=["job"]
    )
    ages = GaugeMetricFamily(
        "sppo_ray_job_staleness",
        "Samples of the newest step by age in policy versions",
        labels=["job", "age"],
    )
    for job in jobs:
        for state, count in Count(worker.state for worker in job.workers).items():
            workers.add_metric([job.id, state], count)
        in_flight.add_metric([job.id], sum(worker.in_flight for worker in job.workers))
        pending.add_metric([job.id], len(job.pending))
        for age, count in job.staleness.items():
            ages.add_metric([job.id, age], count)
    yield from (workers, in_flight, pending, ages)


def _shown(jobs: Sequence[Job]) -> list[Job]:
    """Return all running jobs and the newest ended jobs. `jobs` is newest first."""
    ended = [job for job in jobs if job.state.is_final][:SHOWN_ENDED]
    return [job for job in jobs if not job.state.is_final] + ended


def exposition(jobs: Sequence[Job], *, ray_up: bool, streams: int) -> bytes:
    """Return the Prometheus text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Jobs(jobs, ray_up=ray_up, streams=streams))  # type: ignore[arg-type]
    return generate_latest(registry)
