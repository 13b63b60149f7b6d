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
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sse_starlette import ServerSentEvent

from sppo_ray.api.following import Position, Watch, read_lines
from sppo_ray.api.index import Entry, JobIndex
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.records import parse_object
from sppo_ray.api.run_files import RunFile
from sppo_ray.api.schemas import Job
from sppo_ray.redaction import redact_tree
from sppo_ray.trainer.jsonlines import finite_json
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
    behind, _ = await asyncio.to_thread(_news, entry.record.path, place)
    return behind == place


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
            yield _event("state", place, _in_ascii(entry.body))
        told = False
        if entry.record is not None:
            watch = watch or Watch(RunFile(entry.record.path, METRICS), RunFile(entry.record.path, EVENTS))
            before = place
            place, news = await asyncio.to_thread(_news, entry.record.path, before)
            told = place != before
            if news:
                yield news
        if entry.job.state.is_final and not told:
            yield _event("end", place, json.dumps({"state": entry.job.state}))
            return
        if not told:
            await (watch.changed(LOOK_S) if watch else asyncio.sleep(LOOK_S))


def _news(path: Path, place: Place) -> tuple[Place, bytes]:
    """One piece of each file, a row an event, and the place behind them. For a thread: a row costs a tenth of a millisecond."""
    metrics, events = read_lines(RunFile(path, METRICS), place.metrics), read_lines(RunFile(path, EVENTS), place.events)
    news = []
    if metrics.restarted:
        place = replace(place, metrics=Position())
        news.append(_event("reset", place, json.dumps({"reason": "the run was taken up again at an earlier step"})))
    for position, line in metrics.lines:
        place = replace(place, metrics=position)
        if (text := _metrics_text(line)) is not None:
            news.append(_event(_kind_of(line), place, text))
    for position, line in events.lines:
        place = replace(place, events=position)
        if (text := _event_text(line)) is not None:
            news.append(_event("event", place, text))
    return place, b"".join(news)


def _metrics_text(line: bytes) -> str | None:
    """The row as JSON in ASCII; None for what is no row. As it stands where that does, which is nearly always."""
    row = parse_object(line)
    if row is None:
        return None
    return line.decode() if line.isascii() and b"N" not in line and b"I" not in line else _dumped(row)


def _event_text(line: bytes) -> str | None:
    """The row as JSON in ASCII, secrets blacked out; None for what is no row."""
    row = parse_object(line)
    return None if row is None else _dumped(row, redact_tree)


def _in_ascii(body: bytes) -> str:
    """Some readers of streams take U+2028 and the like for the end of a line."""
    return body.decode() if body.isascii() else json.dumps(json.loads(body))


def _dumped(row: Mapping[str, Any], cleaned: Callable[[Any], Any] = finite_json) -> str | None:
    """None for what is nested deeper than any row of ours."""
    try:
        return json.dumps(finite_json(cleaned(row)), allow_nan=False)
    except RecursionError:
        return None


def _kind_of(line: bytes) -> str:
    return "step" if b'"seconds/step"' in line or b'"reward/mean"' in line else "evaluation"


def _differs(job: Job, shown: Job) -> bool:
    return job is not shown and job.model_dump(exclude=_IGNORED) != shown.model_dump(exclude=_IGNORED)


def _event(kind: str, place: Place, data: str) -> bytes:
    return ServerSentEvent(event=kind, id=str(place), data=data, sep="\n").encode()
