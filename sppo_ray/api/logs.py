"""Read a job's output: from the run directory for jobs of this server, from Ray for the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sppo_ray.api.index import JobIndex
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.ray_jobs import RayJobs
from sppo_ray.redaction import redact
from sppo_ray.rundir.files import NO_FILE, RunFile
from sppo_ray.rundir.layout import OUTPUT
from sppo_ray.rundir.tail import Piece, Position, Watch, read_lines, tail_position, unfinished_line

LOOK_S = 1.0


async def log_of(
    index: JobIndex, ray: RayJobs, job_id: str, *, tail: int, follow: bool
) -> AsyncIterator[bytes]:
    """Yield the last `tail` lines and, with `follow`, new lines until the job has ended. Raises
    ApiProblem: 404 without a job or log, 503 when only Ray has the log and does not answer.
    """
    entry = await index.get(job_id)
    output = RunFile(entry.record.path, OUTPUT) if entry.record else None
    if output is not None and await asyncio.to_thread(output.stamp) != NO_FILE:
        return _from_file(index, job_id, output, tail=tail, follow=follow)
    if entry.job.submission_id is None:
        raise ApiProblem(
            404, "this run was not submitted: it printed to the terminal that started it", kind="no-log"
        )
    text = await ray.logs(entry.job.submission_id)
    return _from_ray(index, ray, job_id, entry.job.submission_id, text, tail=tail, follow=follow)


async def _from_file(
    index: JobIndex, job_id: str, output: RunFile, *, tail: int, follow: bool
) -> AsyncIterator[bytes]:
    place = await asyncio.to_thread(tail_position, output, tail)
    watch = Watch(output)
    while True:
        is_over = not follow or await _is_over(index, job_id)
        piece, text = await asyncio.to_thread(_next_piece, output, place)
        if piece.restarted:
            place = Position()
        if piece.lines:
            place = piece.lines[-1][0]
            yield text
        elif is_over:
            break
        else:
            await watch.changed(LOOK_S)
    rest = await asyncio.to_thread(unfinished_line, output, place)
    if rest:
        yield _clean(rest.decode(errors="replace"))


async def _from_ray(
    index: JobIndex, ray: RayJobs, job_id: str, submission_id: str, text: str, *, tail: int, follow: bool
) -> AsyncIterator[bytes]:
    yield await asyncio.to_thread(_last_lines, text, tail)
    is_over = not follow
    while not is_over:
        known, is_over = len(text), await _is_over(index, job_id)
        await asyncio.sleep(2 * LOOK_S)
        try:
            text = await ray.logs(submission_id)
        except ApiProblem:  # the answer has started, so it can only end here
            return
        yield await asyncio.to_thread(_clean, text[known:])


async def _is_over(index: JobIndex, job_id: str) -> bool:
    try:
        return (await index.get(job_id)).job.state.is_final
    except ApiProblem:  # deleted meanwhile
        return True


def _next_piece(output: RunFile, place: Position) -> tuple[Piece, bytes]:
    piece = read_lines(output, place)
    return piece, b"".join(_clean(line.decode(errors="replace")) + b"\n" for _, line in piece.lines)


def _last_lines(text: str, tail: int) -> bytes:
    lines = text.splitlines(keepends=True)
    return b"".join(_clean(line) for line in lines[len(lines) - min(tail, len(lines)) :])


def _clean(text: str) -> bytes:
    return redact(text).encode(errors="replace")
