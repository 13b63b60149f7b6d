"""What a job printed: from the run directory for jobs that the server submitted, from Ray for the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from sppo_ray.api.following import Position, Watch, read_lines, tail_position
from sppo_ray.api.index import JobIndex
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.ray_jobs import RayJobs
from sppo_ray.api.records import OUTPUT
from sppo_ray.redaction import redact

LOOK_S = 1.0


async def log_of(index: JobIndex, ray: RayJobs, job_id: str, *, tail: int, follow: bool) -> AsyncIterator[bytes]:
    """The last `tail` lines and, with `follow`, what comes until the job has ended.

    Raises ApiProblem: 404 without such a job or without a log, 503 when only Ray has it and does not answer.
    """
    entry = await index.get(job_id)
    output = entry.record.path / OUTPUT if entry.record else None
    if output is not None and await asyncio.to_thread(output.is_file):
        return _from_file(index, job_id, output, tail=tail, follow=follow)
    if entry.job.submission_id is None:
        raise ApiProblem(404, "this run was not submitted: it printed to the terminal that started it", kind="no-log")
    text = await ray.logs(entry.job.submission_id)
    return _from_ray(index, ray, job_id, entry.job.submission_id, text, tail=tail, follow=follow)


async def _from_file(index: JobIndex, job_id: str, path: Path, *, tail: int, follow: bool) -> AsyncIterator[bytes]:
    place = await asyncio.to_thread(tail_position, path, tail)
    watch = Watch(path)
    while True:
        is_over = not follow or await _is_over(index, job_id)
        piece = await asyncio.to_thread(read_lines, path, place)
        if piece.restarted:
            place = Position()
        for behind, line in piece.lines:
            place = behind
            yield _clean(line) + b"\n"
        if not piece.lines and is_over:
            break
        if not piece.lines:
            await watch.changed(LOOK_S)
    rest = await asyncio.to_thread(_unfinished_line, path, place)
    if rest:
        yield _clean(rest)


async def _from_ray(
    index: JobIndex, ray: RayJobs, job_id: str, submission_id: str, text: str, *, tail: int, follow: bool
) -> AsyncIterator[bytes]:
    lines = text.splitlines(keepends=True)
    yield "".join(redact(line) for line in lines[len(lines) - min(tail, len(lines)) :]).encode()
    is_over = not follow
    while not is_over:
        known, is_over = len(text), await _is_over(index, job_id)
        await asyncio.sleep(2 * LOOK_S)
        try:
            text = await ray.logs(submission_id)
        except ApiProblem:  # the answer has begun: it can only end here
            return
        yield redact(text[known:]).encode()


async def _is_over(index: JobIndex, job_id: str) -> bool:
    try:
        return (await index.get(job_id)).job.state.is_final
    except ApiProblem:  # deleted meanwhile
        return True


def _unfinished_line(path: Path, place: Position) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(place.offset)
            return file.read(64 * 1024)
    except FileNotFoundError:
        return b""


def _clean(line: bytes) -> bytes:
    return redact(line.decode(errors="replace")).encode()
