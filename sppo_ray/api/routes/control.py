"""/v1/jobs/{id}: commands to a run. They are written to its inbox; `commands` of the job shows the
results.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Response

from sppo_ray.api.index import Entry
from sppo_ray.api.openapi import JOB_EXAMPLE, answer, problems
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.schemas import FieldError, Job, JobPatch, JobState
from sppo_ray.api.services import JobId, Operator, Ours
from sppo_ray.errors import UserError
from sppo_ray.rundir import commands
from sppo_ray.rundir.record import RunRecord

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["control"])
# the trainer does not read its inbox yet and has no work to lose
_EARLY = ("preparing", "starting actors")
_ACCEPTED = answer(202, "Accepted; `commands` of the job tells the outcome", JOB_EXAMPLE)


@router.patch("", status_code=202, response_model=Job, responses=_ACCEPTED | problems(404, 408, 409, 413))
async def patch_job(job_id: JobId, change: JobPatch, ours: Ours, caller: Operator) -> Response:
    """Scale the rollout workers up or down, pause or resume, while the job runs."""
    if change.rollout_workers is None and change.paused is None:
        raise ApiProblem(422, "body: nothing to change: give rollout_workers, paused or "
                              "both", kind="invalid-request",
                         errors=[FieldError(path="body", message="give rollout_workers, paused or "
                                                                 "both")])  # fmt: skip
    record = _running(await ours.index.renewed(job_id))
    if change.rollout_workers is not None:
        _check_bounds(record, change.rollout_workers)
        await _send(record, "scale", by=caller.name, rollout_workers=change.rollout_workers)
    if change.paused is not None:
        await _send(record, "pause" if change.paused else "resume", by=caller.name)
    return await _accepted(ours, job_id)


@router.post("/checkpoint", status_code=202, response_model=Job, responses=_ACCEPTED | problems(404, 409))
async def checkpoint_job(job_id: JobId, ours: Ours, caller: Operator) -> Response:
    """Write a checkpoint after the current step."""
    await _send(_running(await ours.index.renewed(job_id)), "checkpoint", by=caller.name)
    return await _accepted(ours, job_id)


@router.post("/stop", status_code=202, response_model=Job, responses=_ACCEPTED | problems(404, 409, 503))
async def stop_job(
    job_id: JobId,
    ours: Ours,
    caller: Operator,
    force: Annotated[
        bool, Query(description="End the process now, through Ray, without a last checkpoint")
    ] = False,
) -> Response:
    """End the job after the current step, with a checkpoint, so that it can be resumed."""
    entry = await ours.index.renewed(job_id)
    job = entry.job
    if job.state.is_final:
        raise ApiProblem(
            409, f"job {job_id!r} has ended ({job.state}): there is nothing to stop", kind="ended"
        )
    is_early = (
        job.state is JobState.PENDING or entry.record is None or entry.record.status.phase in (None, *_EARLY)
    )
    if job.submission_id is not None and (force or is_early):
        await ours.ray.stop(job.submission_id)
    elif force:
        raise ApiProblem(
            409, f"job {job_id!r} was not submitted to Ray: stop it without force", kind="not-submitted"
        )
    else:
        await _send(_running(entry), "stop", by=caller.name)
    return await _accepted(ours, job_id)


def _running(entry: Entry) -> RunRecord:
    """Return the record of a job that can take commands. Raises ApiProblem (409)."""
    job = entry.job
    if job.state.is_final:
        raise ApiProblem(409, f"job {job.id!r} has ended ({job.state})", kind="ended")
    if entry.record is None or job.state is JobState.PENDING:
        raise ApiProblem(409, f"job {job.id!r} has not begun: wait until it is RUNNING", kind="not-begun")
    return entry.record


def _check_bounds(record: RunRecord, wanted: int) -> None:
    low, high = record.config.rollout.min_workers, record.config.rollout.max_workers
    if wanted < low or (high is not None and wanted > high):
        known = f"{low} to {high}" if high is not None else f"at least {low}"
        what = f"{wanted} is outside rollout.min_workers and max_workers of this job ({known})"
        raise ApiProblem(
            422,
            f"body.rollout_workers: {what}",
            kind="out-of-bounds",
            errors=[FieldError(path="body.rollout_workers", message=what)],
        )


async def _send(
    record: RunRecord, kind: commands.Kind, *, by: str, rollout_workers: int | None = None
) -> None:
    try:
        await asyncio.to_thread(commands.send, record.path, kind, rollout_workers=rollout_workers, by=by)
    except UserError as error:
        raise ApiProblem(409, str(error), kind="no-inbox") from None


async def _accepted(ours: Ours, job_id: str) -> Response:
    return Response((await ours.index.renewed(job_id)).body, status_code=202, media_type="application/json")
