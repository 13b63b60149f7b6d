"""/v1/jobs/{id}/downloads, export, report: what a run leaves behind, as files."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import iterate_in_threadpool

from sppo_ray.api import archive
from sppo_ray.api.openapi import answer, problems
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.routes.records import run_dir_of
from sppo_ray.api.schemas import Download, Downloads
from sppo_ray.api.services import JobId, Ours, Viewer, Visiting
from sppo_ray.rundir.files import RunFile, files_below, is_file
from sppo_ray.rundir.layout import EXPORT, REPORT

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["records"])
MOST_OF_A_REPORT = 64 << 20  # bytes
TAR = "application/x-tar"
EXAMPLE = {"export": {"name": "first-export.tar", "bytes": 524288, "files": 9}, "report": None}
_BINARY = {"schema": {"type": "string", "format": "binary"}}


@router.get(
    "/downloads", response_model=Downloads, responses=answer(200, "What there is", EXAMPLE) | problems(404)
)
async def downloads(job_id: JobId, ours: Ours, caller: Viewer) -> Downloads:
    """Which files can be downloaded: the exported models, and the report of `sppo-ray report`."""
    run_dir = await run_dir_of(ours, job_id)
    return await asyncio.to_thread(_downloads, run_dir)


@router.get(
    "/export",
    response_class=Response,
    responses={200: {"description": "A tar archive", "content": {TAR: _BINARY}}} | problems(404),
)
async def export(job_id: JobId, ours: Ours, caller: Viewer, visit: Visiting) -> Response:
    """The exported policy and critic, plain Transformers checkpoints, as one tar archive."""
    run_dir = await run_dir_of(ours, job_id)
    entries = await asyncio.to_thread(_export, run_dir)
    if not entries:
        raise ApiProblem(404, "this run has no export: it is written when a run finishes", kind="no-export")
    ours.streams.require_free(visit.share)
    stream = ours.streams.counted(iterate_in_threadpool(archive.tar_of(entries)), visit)
    # With its length, an archive that is cut off is an error for every client.
    length = {"Content-Length": str(archive.archived_size(entries))}
    headers = _saved_as(f"{run_dir.name}-export.tar") | length
    return StreamingResponse(stream, media_type=TAR, headers=headers)


@router.get(
    "/report",
    response_class=Response,
    responses={200: {"description": "One HTML file", "content": {"text/html": _BINARY}}} | problems(404),
)
async def report(job_id: JobId, ours: Ours, caller: Viewer) -> Response:
    """The report that `sppo-ray report` wrote into the run directory."""
    run_dir = await run_dir_of(ours, job_id)
    try:
        page = await asyncio.to_thread(RunFile(run_dir, REPORT).read, MOST_OF_A_REPORT)
    except OSError:
        detail = "this run has no report: write it with `sppo-ray report RUN`"
        raise ApiProblem(404, detail, kind="no-report") from None
    return Response(page, media_type="text/html", headers=_saved_as(f"{run_dir.name}-report.html"))


def _downloads(run_dir: Path) -> Downloads:
    entries = _export(run_dir)
    exported = Download(
        name=f"{run_dir.name}-export.tar", bytes=sum(entry.size for entry in entries), files=len(entries)
    )
    size = RunFile(run_dir, REPORT).stamp()[2] if is_file(run_dir, REPORT) else None
    reported = None if size is None else Download(name=f"{run_dir.name}-report.html", bytes=size, files=1)
    return Downloads(export=exported if entries else None, report=reported)


def _export(run_dir: Path) -> list[archive.Entry]:
    names = files_below(run_dir, EXPORT, most=archive.MOST_FILES)
    return archive.entries_of(run_dir, names, below=f"{EXPORT}/", root=run_dir.name)


def _saved_as(name: str) -> dict[str, str]:
    """Headers with which a browser saves the file instead of showing it: a run's HTML must not run
    as a page of this server. Names of run directories need no quoting.
    """
    return {"Content-Disposition": f'attachment; filename="{name}"', "Content-Security-Policy": "sandbox"}
