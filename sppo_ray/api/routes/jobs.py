"""/v1/jobs: submit, list, show, delete."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Response

from sppo_ray.api import submission
from sppo_ray.api.index import Entry
from sppo_ray.api.openapi import JOB_EXAMPLE, answer, problems
from sppo_ray.api.problems import ApiProblem, unknown_job
from sppo_ray.api.ray_jobs import RayJobs
from sppo_ray.api.schemas import Job, JobList, JobRequest, JobState
from sppo_ray.api.services import DIGITS, JobId, Operator, Ours, Viewer

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
JSON = "application/json"
EXIT_TRIES = 20  # seconds for a process to end after its run
LIST_EXAMPLE = {"jobs": [JOB_EXAMPLE], "next_cursor": None, "total": 1, "ray": "up"}


@router.get("", response_model=JobList, responses=answer(200, "Newest first", LIST_EXAMPLE) | problems(422))
async def list_jobs(
    ours: Ours,
    caller: Viewer,
    state: Annotated[list[JobState] | None, Query(description="Only these; may be repeated")] = None,
    name: Annotated[
        str | None,
        Query(
            max_length=100,
            description="Only those with this in their id, name, recipe or algorithm, in any case",
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="Jobs at most"), DIGITS] = 50,
    cursor: Annotated[str | None, Query(max_length=500, description="next_cursor of the page before")] = None,
) -> Response:
    """All jobs, however submitted, newest first."""
    entries = [
        entry
        for entry in await ours.index.jobs()
        if (not state or entry.job.state in state) and _is_called(entry, name)
    ]
    start = _after(entries, cursor) if cursor else 0
    page = entries[start : start + limit]
    following = cursor_of(page[-1]) if start + limit < len(entries) else None
    head = JobList(jobs=[], next_cursor=following, total=len(entries), ray="up" if ours.ray.is_up else "down")
    # The jobs' JSON is kept with them: a page of 500 costs no serialisation.
    body = (
        head.model_dump_json()
        .encode()
        .replace(b'"jobs":[]', b'"jobs":[' + b",".join(entry.body for entry in page) + b"]", 1)
    )
    return Response(body, media_type=JSON)


@router.post(
    "",
    status_code=201,
    response_model=Job,
    responses={
        201: {
            "headers": {"Location": {"schema": {"type": "string"}}},
            **answer(201, "Submitted", JOB_EXAMPLE)[201],
        }
    }
    | problems(400, 404, 408, 409, 413, 503),
)
async def submit_job(request: JobRequest, ours: Ours, caller: Operator) -> Response:
    """Submit a training job. Its settings are checked first: a mistake is a 422 and uses no cluster
    time.
    """
    if request.resume and request.run_name:
        await _require_ended(ours, request.run_name)
    await asyncio.to_thread(submission.check, request, ours.settings)
    await _require_ray(ours)
    job = await asyncio.to_thread(submission.prepare, request, ours.settings, by=caller.name)
    try:
        await ours.ray.submit(job.entrypoint, submission_id=job.submission_id, metadata=job.metadata)
    except ApiProblem as problem:
        await asyncio.to_thread(submission.mark_failed, job, f"Ray did not take the job: {problem.detail}")
        raise
    entry = await ours.index.renewed(job.submission_id)
    return Response(
        entry.body, status_code=201, media_type=JSON, headers={"Location": f"/v1/jobs/{entry.job.id}"}
    )


@router.get("/{job_id}", response_model=Job, responses=answer(200, "The job", JOB_EXAMPLE) | problems(404))
async def get_job(job_id: JobId, ours: Ours, caller: Viewer) -> Response:
    """Show a job. Answered from memory, also while its learner is busy or Ray does not answer."""
    return Response((await ours.index.get(job_id)).body, media_type=JSON)


@router.delete("/{job_id}", status_code=204, response_class=Response, responses=problems(404, 409))
async def delete_job(job_id: JobId, ours: Ours, caller: Operator) -> Response:
    """Delete an ended job with its whole run directory: metrics, samples, checkpoints,
    everything.
    """
    entry = await ours.index.renewed(job_id)
    if not entry.job.state.is_final:
        raise ApiProblem(409, f"job {job_id!r} is {entry.job.state}: stop it first", kind="not-ended")
    if entry.job.submission_id is not None:
        await _forget(ours.ray, entry.job.submission_id)
    if entry.record is not None:
        try:
            await asyncio.to_thread(_remove, entry.record.path)
        except FileNotFoundError:  # another request was first
            raise unknown_job(job_id) from None
    await ours.index.refresh()
    return Response(status_code=204)


def _remove(run_dir: Path) -> None:
    """Rename the directory first, then delete it, so that an interrupted deletion leaves no partial
    run in the list.
    """
    doomed = run_dir.with_name(f".deleting-{run_dir.name}-{os.urandom(4).hex()}")
    os.rename(run_dir, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


async def _forget(ray: RayJobs, submission_id: str) -> None:
    """Delete Ray's record too, if any. Raises ApiProblem (409) while the process is still
    ending.
    """
    for _ in range(EXIT_TRIES):
        known = (ray.jobs or {}).get(submission_id)
        if known is None:
            return
        if known.is_over:
            break
        await asyncio.sleep(1)
        await ray.refresh()
    else:
        raise ApiProblem(
            409, f"job {submission_id!r} has ended but its process has not: try again", kind="not-ended"
        )
    try:
        await ray.delete(submission_id)
    except ApiProblem as problem:
        if problem.status != 404:
            raise


async def _require_ray(ours: Ours) -> None:
    """Check before anything is written that Ray answers."""
    if not ours.ray.is_up:
        await ours.ray.refresh()
    ours.ray.require_up()


async def _require_ended(ours: Ours, run_name: str) -> None:
    job = (await ours.index.renewed(run_name)).job
    if not job.state.is_final:
        raise ApiProblem(
            409,
            f"run {run_name!r} is {job.state}: only a run that has ended can be continued",
            kind="not-ended",
        )
    if job.state is JobState.SUCCEEDED:
        raise ApiProblem(409, f"run {run_name!r} is finished: there is nothing to continue", kind="ended")


def _is_called(entry: Entry, name: str | None) -> bool:
    job = entry.job
    names = (job.id, job.run_id, job.name, job.recipe, job.algorithm)
    return not name or any(name.casefold() in text.casefold() for text in names if text)


def cursor_of(entry: Entry) -> str:
    """Return a cursor: a place in the order, which stays valid when its job leaves the list."""
    created, job_id = entry.place
    return f"{created!r},{job_id}"


def _after(entries: Sequence[Entry], cursor: str) -> int:
    """Return the index of the first job after the cursor. Raises ApiProblem (422) for an invalid
    cursor.
    """
    created, comma, job_id = cursor.partition(",")
    try:
        behind = (float(created), job_id)
    except ValueError:
        behind = (math.nan, "")
    if not comma or not math.isfinite(behind[0]):
        detail = "query.cursor: not a next_cursor of this list: begin again without one"
        raise ApiProblem(422, detail, kind="invalid-request")
    return sum(entry.place >= behind for entry in entries)
