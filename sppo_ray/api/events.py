"""A job as server-sent events, read from its run directory: one pass over its files, then what is appended to them.

    event "step"        a row of metrics.jsonl that a training step wrote
    event "evaluation"  a row of metrics.jsonl that a held-out evaluation wrote
    event "event"       a row of events.jsonl
    event "state"       the job, when something of it changed
    event "reset"       the rows so far are void: the run was taken up again at an earlier step; they follow anew
    event "end"         the job has ended and nothing more will come

The id of an event is where both files stand behind it, so that a client that comes back misses and repeats nothing. A client
costs two file pieces of memory, however long the run is: the next piece is read when the one before was taken.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from sse_starlette import ServerSentEvent

from sppo_ray.api.following import Piece, Position, Watch, read_lines
from sppo_ray.api.index import Entry, JobIndex
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.schemas import Job
from sppo_ray.redaction import redact
from sppo_ray.trainer.metrics import EVENTS, METRICS

LOOK_S = 1.0  # the longest that a change of state, which no file tells, stays unseen
_IGNORED = {"updated", "eta_s"}  # these alone are no news


@dataclass(frozen=True, slots=True)
class Place:
    """How far a client has read."""

    metrics: Position = Position()
    events: Position = Position()

    def __str__(self) -> str:
        return f"{self.metrics}-{self.events}"

    @classmethod
    def parse(cls, text: str | None) -> Place:
        """From Last-Event-ID; what is no place of ours is the beginning."""
        parts = [Position.parse(part) for part in (text or "").split("-")]
        return cls(*parts) if len(parts) == 2 and None not in parts else cls()  # type: ignore[arg-type]


async def is_exhausted(entry: Entry, place: Place) -> bool:
    """Whether a client that is at `place` has everything of a job that has ended."""
    if entry.record is None or not entry.job.state.is_final or place == Place():
        return False
    pieces = await _read(entry.record.path, place)
    return not any(piece.lines or piece.restarted for piece in pieces)


async def follow(index: JobIndex, job_id: str, place: Place) -> AsyncIterator[bytes]:
    """The job's events behind `place`, several in a piece, until it has ended (or was deleted) and everything is told."""
    shown: Job | None = None
    watch: Watch | None = None
    while True:
        try:
            entry = await index.get(job_id)
        except ApiProblem:  # deleted meanwhile
            yield _event("end", place, json.dumps({"state": "DELETED"}))
            return
        if shown is None or _differs(entry.job, shown):
            shown = entry.job
            yield _event("state", place, entry.body.decode())
        told = False
        if entry.record is not None:
            watch = watch or Watch(entry.record.path / METRICS, entry.record.path / EVENTS)
            place, news = await _news(entry.record.path, place)
            if news:
                told = True
                yield b"".join(news)
        if entry.job.state.is_final and not told:
            yield _event("end", place, json.dumps({"state": entry.job.state}))
            return
        if not told:
            await (watch.changed(LOOK_S) if watch else asyncio.sleep(LOOK_S))


async def _news(path: Path, place: Place) -> tuple[Place, list[bytes]]:
    """One piece of each file, a row an event, and the place behind them."""
    metrics, events = await _read(path, place)
    news = []
    if metrics.restarted:
        place = replace(place, metrics=Position())
        news.append(_event("reset", place, json.dumps({"reason": "the run was taken up again at an earlier step"})))
    for position, line in metrics.lines:
        place = replace(place, metrics=position)
        news.append(_event(_kind_of(line), place, line.decode(errors="replace")))
    for position, line in events.lines:
        place = replace(place, events=position)
        news.append(_event("event", place, redact(line.decode(errors="replace"))))
    return place, news


async def _read(path: Path, place: Place) -> tuple[Piece, Piece]:
    def read() -> tuple[Piece, Piece]:
        return read_lines(path / METRICS, place.metrics), read_lines(path / EVENTS, place.events)

    return await asyncio.to_thread(read)


def _kind_of(line: bytes) -> str:
    return "step" if b'"seconds/step"' in line or b'"reward/mean"' in line else "evaluation"


def _differs(job: Job, shown: Job) -> bool:
    return job is not shown and job.model_dump(exclude=_IGNORED) != shown.model_dump(exclude=_IGNORED)


def _event(kind: str, place: Place, data: str) -> bytes:
    return ServerSentEvent(event=kind, id=str(place), data=data, sep="\n").encode()
