"""The list of jobs in memory, rebuilt from the run directories when they change.

Requests are answered from memory. A list older than `refresh_s` is refreshed in a thread; until
then requests get the old list, unless it is too old.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from sppo_ray.api.jobs import JobContext, RayJob, job_of, job_of_ray
from sppo_ray.api.problems import ApiProblem, unknown_job
from sppo_ray.api.ray_jobs import RayJobs
from sppo_ray.api.schemas import Job, JobState
from sppo_ray.rundir.record import LockHolder, RunRecord, has_run, read_record, run_directories, signature_of

TOO_OLD_S = 5.0  # an answer from memory is never older than refresh_s plus this
# runs that have ended are checked in every tenth round, a tenth of them in each
ENDED_EVERY = 10
log = logging.getLogger("sppo_ray.api")


@dataclass(frozen=True, slots=True)
class Entry:
    """A job with its serialised answer."""

    job: Job
    record: RunRecord | None  # None = only Ray knows it
    body: bytes  # the job as JSON

    @property
    def place(self) -> tuple[float, str]:
        """Sort key in the list, largest first."""
        return self.job.created or 0.0, self.job.id

    @classmethod
    def of(cls, job: Job, record: RunRecord | None) -> Entry:
        return cls(job, record, job.model_dump_json().encode())


class JobIndex:
    """All jobs of one directory of runs. `get` and `jobs` may be called concurrently."""

    def __init__(self, runs: Path, ray: RayJobs, *, refresh_s: float) -> None:
        self.runs = runs
        self._ray = ray
        self._refresh_s = refresh_s
        self._entries: dict[str, Entry] = {}  # by run id
        self._by_id: dict[str, Entry] = {}  # by job id and by run id
        # submission id -> the run ids, of a Ray job that has several
        self._shared: dict[str, list[str]] = {}
        self._order: list[Entry] = []  # newest first
        self._trouble: dict[str, str] = {}  # run id -> why it is left out
        self._refreshed = -1e9
        self._round = 0
        self._lock = threading.Lock()
        self._refreshing: asyncio.Task[None] | None = None

    async def jobs(self) -> Sequence[Entry]:
        """Return all jobs, newest first."""
        await self._fresh()
        return self._order

    async def get(self, job_id: str) -> Entry:
        """Return the job with this job id, submission id or run id. Raises ApiProblem (404)."""
        await self._fresh()
        entry = self._by_id.get(job_id)
        if entry is None and await asyncio.to_thread(has_run, self.runs, job_id):
            # a run that started since the last refresh; a wrong guess costs one check
            await self.refresh()
            entry = self._by_id.get(job_id)
        if entry is None and job_id in self._shared:
            raise _several(job_id, self._shared[job_id])
        if entry is None:
            raise unknown_job(job_id)
        return entry

    async def renewed(self, job_id: str) -> Entry:
        """`get` after a full refresh, for answers to a command. Raises ApiProblem (404)."""
        await asyncio.to_thread(self.refresh_now, thorough=True)
        return await self.get(job_id)

    async def refresh(self) -> None:
        await asyncio.to_thread(self.refresh_now)

    def refresh_now(self, *, thorough: bool = False) -> None:
        """Read every run directory whose files may have changed; with `thorough`, all of them. One
        thread at a time.
        """
        with self._lock:
            ray_jobs = self._ray.jobs
            now = time.time()
            entries: dict[str, Entry] = {}
            trouble: dict[str, str] = {}
            for place, path in enumerate(run_directories(self.runs, known=self._entries.keys())):
                is_due = thorough or (place + self._round) % ENDED_EVERY == 0
                try:
                    entries[path.name] = self._entry(path, ray_jobs, now, is_due=is_due)
                except Exception as error:  # boundary: a damaged run must not hide the others
                    trouble[path.name] = f"{type(error).__name__}: {error}"
                    if trouble[path.name] != self._trouble.get(path.name):
                        log.error(
                            "run %s is left out of the list: fix or remove its directory",
                            path.name,
                            exc_info=error,
                        )
            self._entries, self._trouble = entries, trouble
            self._publish(ray_jobs)
            self._round += 1
            self._refreshed = time.monotonic()

    def _entry(self, path: Path, ray_jobs: Mapping[str, RayJob] | None, now: float, *, is_due: bool) -> Entry:
        known = self._entries.get(path.name)
        record = known.record if known else None
        # Ray may answer again and know a LOST job.
        rests = known is not None and known.job.state.is_final and known.job.state is not JobState.LOST
        if known and record and rests and (not is_due or signature_of(path) == record.signature):
            return known
        if record is None or signature_of(path) != record.signature:
            record = read_record(path, record)
        around = JobContext(
            now=now, ray=ray_jobs, process_alive=None if record.lock is None else holder_alive(record.lock)
        )
        job = job_of(record, around)
        return known if known and known.record is record and known.job == job else Entry.of(job, record)

    def _publish(self, ray_jobs: Mapping[str, RayJob] | None) -> None:
        shared = _shared_ids(self._entries)
        runs = [_under_run_id(entry) if entry.job.id in shared else entry for entry in self._entries.values()]
        by_id = {entry.job.run_id or "": entry for entry in runs} | {entry.job.id: entry for entry in runs}
        ray_only = [
            Entry.of(job_of_ray(job), None)
            for key, job in (ray_jobs or {}).items()
            if key not in by_id and key not in shared
        ]
        by_id |= {entry.job.id: entry for entry in ray_only}
        self._order = sorted([*runs, *ray_only], key=lambda entry: entry.place, reverse=True)
        self._by_id, self._shared = by_id, shared

    async def _fresh(self) -> None:
        age = time.monotonic() - self._refreshed
        if age <= self._refresh_s and self._refresh_s > 0:
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self.refresh())
        if self._refresh_s == 0 or age > self._refresh_s + TOO_OLD_S:
            await asyncio.shield(self._refreshing)


def _shared_ids(entries: Mapping[str, Entry]) -> dict[str, list[str]]:
    """Return ambiguous ids: shared by two runs of one Ray job, or equal to another run's directory
    name.
    """
    found: dict[str, list[str]] = {}
    for run_id, entry in entries.items():
        found.setdefault(entry.job.id, []).append(run_id)
    return {
        key: run_ids
        for key, run_ids in found.items()
        if run_ids != [key] and (len(run_ids) > 1 or key in entries)
    }


def _under_run_id(entry: Entry) -> Entry:
    return Entry.of(entry.job.model_copy(update={"id": entry.job.run_id}), entry.record)


def _several(submission_id: str, run_ids: Sequence[str]) -> ApiProblem:
    names = ", ".join(sorted(run_ids)[:10])
    detail = f"Ray job {submission_id!r} has {len(run_ids)} runs: name one by its run id, e.g. {names}"
    return ApiProblem(404, detail, kind="several-runs")


def holder_alive(lock: LockHolder) -> bool | None:
    """Whether the process that wrote the lock is alive; None when it was on another host. A process
    with a reused pid is younger.
    """
    if lock.host != socket.gethostname():
        return None
    try:
        return psutil.Process(lock.pid).create_time() <= lock.since + 1.0
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # the process exists
        return True
