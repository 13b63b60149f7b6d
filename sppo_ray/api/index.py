"""The list of jobs in memory, rebuilt from the run directories whenever they changed. Losing it costs nothing.

Requests are answered from memory. What is older than `refresh_s` is looked at again in a thread; while that lasts, requests
get what is there, unless it is too old to be shown.
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

from sppo_ray.api.jobs import RayJob, Surroundings, job_of, job_of_ray
from sppo_ray.api.problems import ApiProblem, unknown_job
from sppo_ray.api.ray_jobs import RayJobs
from sppo_ray.api.records import LockHolder, RunRecord, has_run, read_record, run_directories, signature_of
from sppo_ray.api.schemas import Job, JobState

TOO_OLD_S = 5.0  # an answer from memory is never older than refresh_s plus this
ENDED_EVERY = 10  # a run that has ended is looked at in every tenth round only, a tenth of them in each
log = logging.getLogger("sppo_ray.api")


@dataclass(frozen=True, slots=True)
class Entry:
    """A job with its answer, ready to be sent."""

    job: Job
    record: RunRecord | None  # None = only Ray knows it
    body: bytes  # the job as JSON

    @property
    def place(self) -> tuple[float, str]:
        """In the list, which begins with the greatest."""
        return self.job.created or 0.0, self.job.id

    @classmethod
    def of(cls, job: Job, record: RunRecord | None) -> Entry:
        return cls(job, record, job.model_dump_json().encode())


class JobIndex:
    """All jobs of one directory of runs. `get` and `jobs` may be called by any number of requests at once."""

    def __init__(self, runs: Path, ray: RayJobs, *, refresh_s: float) -> None:
        self.runs = runs
        self._ray = ray
        self._refresh_s = refresh_s
        self._entries: dict[str, Entry] = {}  # by run id
        self._by_id: dict[str, Entry] = {}  # by job id and by run id
        self._shared: dict[str, list[str]] = {}  # submission id -> the run ids, of a Ray job that has several
        self._order: list[Entry] = []  # newest first
        self._trouble: dict[str, str] = {}  # run id -> why it is left out
        self._refreshed = -1e9
        self._round = 0
        self._lock = threading.Lock()
        self._refreshing: asyncio.Task[None] | None = None

    async def jobs(self) -> Sequence[Entry]:
        """Newest first."""
        await self._fresh()
        return self._order

    async def get(self, job_id: str) -> Entry:
        """By job id, submission id or run id. Raises ApiProblem (404)."""
        await self._fresh()
        entry = self._by_id.get(job_id)
        if entry is None and await asyncio.to_thread(has_run, self.runs, job_id):
            await self.refresh()  # a run that began since the last look; a stranger's guess costs a glance
            entry = self._by_id.get(job_id)
        if entry is None and job_id in self._shared:
            raise _several(job_id, self._shared[job_id])
        if entry is None:
            raise unknown_job(job_id)
        return entry

    async def renewed(self, job_id: str) -> Entry:
        """`get`, after looking at everything again: for what follows a command. Raises ApiProblem (404)."""
        await asyncio.to_thread(self.refresh_now, thorough=True)
        return await self.get(job_id)

    async def refresh(self) -> None:
        await asyncio.to_thread(self.refresh_now)

    def refresh_now(self, *, thorough: bool = False) -> None:
        """Look at every run directory whose files may have changed, or `thorough`ly at all. One thread at a time."""
        with self._lock:
            ray_jobs = self._ray.jobs
            now = time.time()
            entries: dict[str, Entry] = {}
            trouble: dict[str, str] = {}
            for place, path in enumerate(run_directories(self.runs, known=self._entries.keys())):
                is_due = thorough or (place + self._round) % ENDED_EVERY == 0
                try:
                    entries[path.name] = self._entry(path, ray_jobs, now, is_due=is_due)
                except Exception as error:  # boundary: whatever somebody wrote into a run, it hides no other
                    trouble[path.name] = f"{type(error).__name__}: {error}"
                    if trouble[path.name] != self._trouble.get(path.name):
                        log.error("run %s is left out of the list: mend or remove its directory", path.name, exc_info=error)
            self._entries, self._trouble = entries, trouble
            self._publish(ray_jobs)
            self._round += 1
            self._refreshed = time.monotonic()

    def _entry(self, path: Path, ray_jobs: Mapping[str, RayJob] | None, now: float, *, is_due: bool) -> Entry:
        known = self._entries.get(path.name)
        record = known.record if known else None
        # Ray may come back and say otherwise of a LOST one.
        rests = known is not None and known.job.state.is_final and known.job.state is not JobState.LOST
        if known and record and rests and (not is_due or signature_of(path) == record.signature):
            return known
        if record is None or signature_of(path) != record.signature:
            record = read_record(path, record)
        around = Surroundings(now=now, ray=ray_jobs, process_alive=None if record.lock is None else holder_alive(record.lock))
        job = job_of(record, around)
        return known if known and known.record is record and known.job == job else Entry.of(job, record)

    def _publish(self, ray_jobs: Mapping[str, RayJob] | None) -> None:
        shared = _shared_ids(self._entries)
        runs = [_under_run_id(entry) if entry.job.id in shared else entry for entry in self._entries.values()]
        by_id = {entry.job.run_id or "": entry for entry in runs} | {entry.job.id: entry for entry in runs}
        ray_only = [
            Entry.of(job_of_ray(job), None) for key, job in (ray_jobs or {}).items() if key not in by_id and key not in shared
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
    """Ids that do not name one run: two of one Ray job bear its id, or it is the name of another run's directory too."""
    found: dict[str, list[str]] = {}
    for run_id, entry in entries.items():
        found.setdefault(entry.job.id, []).append(run_id)
    return {key: run_ids for key, run_ids in found.items() if run_ids != [key] and (len(run_ids) > 1 or key in entries)}


def _under_run_id(entry: Entry) -> Entry:
    return Entry.of(entry.job.model_copy(update={"id": entry.job.run_id}), entry.record)


def _several(submission_id: str, run_ids: Sequence[str]) -> ApiProblem:
    names = ", ".join(sorted(run_ids)[:10])
    detail = f"Ray job {submission_id!r} has {len(run_ids)} runs: name one by its run id, e.g. {names}"
    return ApiProblem(404, detail, kind="several-runs")


def holder_alive(lock: LockHolder) -> bool | None:
    """Whether the process that wrote the lock lives; None when it was on another host. A reused pid is younger."""
    if lock.host != socket.gethostname():
        return None
    try:
        return psutil.Process(lock.pid).create_time() <= lock.since + 1.0
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # it is there
        return True
