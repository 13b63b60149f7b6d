"""`sppo-ray list | status | logs`: show jobs through the REST API."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from sppo_ray.cli.job_text import date_of, describe, figure, harmless, position
from sppo_ray.cli.shared import JobId, Json, Url, repeated
from sppo_ray.errors import UserError

if TYPE_CHECKING:
    from sppo_ray.api.client import Client
    from sppo_ray.api.schemas import Job

EXIT_NOT_SUCCEEDED = 1


def list_jobs(
    *,
    state: Annotated[list[str], repeated(metavar="STATE", help="only jobs in this state; may be repeated")],
    name: Annotated[
        str | None, Option(help="only jobs with this text in id, name, recipe or algorithm")
    ] = None,
    limit: Annotated[int, Option(help="maximum number of jobs")] = 20,
    url: Url = None,
    as_json: Json = False,
) -> int:
    """List jobs, newest first."""
    from sppo_ray.api.client import Client
    from sppo_ray.api.schemas import JobState

    wanted = [text.upper() for text in state]
    unknown = sorted(set(wanted) - set(JobState))
    if unknown:
        raise UserError(f"--state {unknown[0]}: there are {', '.join(JobState)}")
    with Client(url) as client:
        states = [JobState(text) for text in wanted] or None
        page = client.list_jobs(state=states, name=name, limit=limit)
    if as_json:
        print(page.model_dump_json(indent=2))
        return 0
    width = max([len(job.id) for job in page.jobs], default=4)
    print(
        f"{'JOB':<{width}}  {'STATE':<9}  {'STEP':>9}  {'REWARD':>6}  {'ACCURACY':>8}  {'WORKERS':>7}  "
        "CREATED"
    )
    for job in page.jobs:
        print(
            f"{job.id:<{width}}  {job.state:<9}  {position(job):>9}  {figure(job.reward):>6}  "
            f"{figure(job.accuracy):>8}  "
            f"{len(job.workers) if not job.state.is_final else '-':>7}  {date_of(job.created)}"
        )
    if page.total > len(page.jobs):
        print(f"{page.total - len(page.jobs)} more: --limit {page.total}")
    return 0


def status(
    job: JobId,
    *,
    watch: Annotated[bool, Option("--watch", help="continue until the job ends")] = False,
    url: Url = None,
    as_json: Json = False,
) -> int:
    """Show the state of a job."""
    from sppo_ray.api.client import Client

    with Client(url) as client:
        seen = client.get_job(job)
        if watch:
            for event in client.event_stream(seen.id):
                seen = _watched(event.kind, event.data, seen)
            seen = client.get_job(job)
    print(seen.model_dump_json(indent=2) if as_json else describe(seen))
    return 0 if not watch or seen.state == "SUCCEEDED" else EXIT_NOT_SUCCEEDED


def _watched(kind: str, data: dict[str, Any], job: Job) -> Job:
    """Print an event as one line; return the job after it."""
    from sppo_ray.api.schemas import Job

    if kind == "step":
        job = job.model_copy(update={"step": data["step"], "seconds": data.get("seconds/total", job.seconds)})
        print(f"step {position(job)}  reward {figure(data.get('reward/mean'))}", flush=True)
    elif kind == "evaluation":
        print(f"step {data['step']}  held-out accuracy {figure(data.get('eval/accuracy'))}", flush=True)
    elif kind == "event":
        print(harmless(f"{data.get('kind')}: {data.get('message')}", lines=False), flush=True)
    elif kind == "state":
        seen = Job.model_validate(data)
        if (seen.state, seen.phase) != (job.state, job.phase):
            print(f"{seen.state} ({seen.phase})", flush=True)
        return seen
    return job


def logs(
    job: JobId,
    *,
    follow: Annotated[bool, Option("-f", "--follow", help="continue until the job ends")] = False,
    tail: Annotated[int, Option(help="lines from the end")] = 1000,
    url: Url = None,
) -> int:
    """Show a job's log."""
    from sppo_ray.api.client import Client

    with Client(url) as client:
        return print_log(client, job, tail=tail, follow=follow)


def print_log(client: Client, job_id: str, *, tail: int, follow: bool) -> int:
    """Print a job's log as it comes."""
    for piece in client.log(job_id, tail=tail, follow=follow):
        sys.stdout.write(harmless(piece))
        sys.stdout.flush()
    return 0
