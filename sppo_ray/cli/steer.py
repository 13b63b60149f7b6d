"""`sppo-ray scale | pause | resume | checkpoint | stop`: send commands to a running job over the
REST API.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from sppo_ray.cli.shared import JobId, Json, Url, checked

if TYPE_CHECKING:
    from sppo_ray.api.client import Client
    from sppo_ray.api.schemas import Job


def scale(
    job: JobId,
    *,
    rollout_workers: Annotated[int, Option(help="wanted number of rollout workers")],
    url: Url = None,
    as_json: Json = False,
) -> int:
    """Change the number of rollout workers of a running job."""
    return _patch("scale", job, {"rollout_workers": rollout_workers}, url, as_json)


def pause(job: JobId, *, url: Url = None, as_json: Json = False) -> int:
    """Pause a job after the current step."""
    return _patch("pause", job, {"paused": True}, url, as_json)


def resume(job: JobId, *, url: Url = None, as_json: Json = False) -> int:
    """Resume a paused job."""
    return _patch("resume", job, {"paused": False}, url, as_json)


def checkpoint(job: JobId, *, url: Url = None, as_json: Json = False) -> int:
    """Write a checkpoint after the current step."""
    return _order("checkpoint", lambda client: client.checkpoint_job(job), url, as_json)


def stop(
    job: JobId,
    *,
    force: Annotated[bool, Option("--force", help="now, without a last checkpoint")] = False,
    url: Url = None,
    as_json: Json = False,
) -> int:
    """End a job after the current step, with a checkpoint."""
    return _order("stop", lambda client: client.stop_job(job, force=force), url, as_json)


def _patch(kind: str, job: str, change: dict[str, Any], url: str | None, as_json: bool) -> int:
    from sppo_ray.api.schemas import JobPatch

    patch = checked(JobPatch, change)
    return _order(kind, lambda client: client.patch_job(job, patch), url, as_json)


def _order(kind: str, order: Callable[[Client], Job], url: str | None, as_json: bool) -> int:
    from sppo_ray.api.client import Client

    with Client(url) as client:
        job = order(client)
    if as_json:
        print(job.model_dump_json(indent=2))
    else:
        newest = job.commands[-1].kind if job.commands else kind
        print(f"{job.id}: {newest} asked for, the job is {job.state}")
    return 0
