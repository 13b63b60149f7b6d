"""Stream a job as server-sent events from its run directory: first all rows of its files, then new
rows.

    event "step"        a row of metrics.jsonl that a training step wrote
    event "evaluation"  a row of metrics.jsonl that a held-out evaluation wrote
    event "event"       a row of events.jsonl
    event "state"       the job, when something of it changed
    event "reset"       the rows so far are void: the run was taken up again at an earlier step;
                        they follow anew
    event "end"         the job has ended and nothing more will come

The id of an event is the position in both files after it, so a client that reconnects misses and
repeats nothing. A client uses the memory of two file pieces, however long the run is: the next
piece is read after the previous one was sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sse_starlette import ServerSentEvent

from sppo_ray.api.index import Entry, JobIndex
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.schemas import Job
from sppo_ray.redaction import redact_tree
from sppo_ray.rundir.files import RunFile
from sppo_ray.rundir.jsonlines import finite_json, parse_object
from sppo_ray.rundir.layout import EVENTS, METRICS
from sppo_ray.rundir.metrics import is_training_step
from sppo_ray.rundir.tail import Position, Watch, read_lines

LOOK_S = 1.0  # maximum delay of a change of state that no file shows
_IGNORED = {"updated", "eta_s"}  # changes of only these fields are not sent


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a client."""

    metrics: Position = Position()
    events: Position = Position()

    def __str__(self) -> str:
        return f"{self.metrics}-{self.events}"

    @classmethod
    def parse(cls, text: str | None) -> Place:
        """Parse Last-Event-ID; an unknown value means the beginning."""
        parts = [Position.parse(part) for part in (text or "").split("-")]
        return cls(*parts) if len(parts) == 2 and None not in parts else cls()  # type: ignore[arg-type]


async def is_exhausted(entry: Entry, place: Place) -> bool:
    """Whether the job has ended and a client at `place` has read everything."""
    if entry.record is None or not entry.job.state.is_final or place == Place():
        return False
    behind, _ = await asyncio.to_thread(_news, entry.record.path, place)
    return behind == place


async def follow(index: JobIndex, job_id: str, place: Place) -> AsyncIterator[bytes]:
    """Yield the job's events after `place`, several in a piece, until the job has ended (or was
    deleted) and all events are sent.
    """
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
    """Read one piece of each file, one event per row, and the place after them. Runs in a thread,
    because a row takes a tenth of a millisecond.
    """
    metrics, events = (
        read_lines(RunFile(path, METRICS), place.metrics),
        read_lines(RunFile(path, EVENTS), place.events),
    )
    news = []
    if metrics.restarted:
        place = replace(place, metrics=Position())
        news.append(
            _event("reset", place, json.dumps({"reason": "the run was taken up again at an earlier step"}))
        )
    for position, line in metrics.lines:
        place = replace(place, metrics=position)
        row = parse_object(line)
        if row is not None and (text := _metrics_text(line, row)) is not None:
            news.append(_event("step" if is_training_step(row) else "evaluation", place, text))
    for position, line in events.lines:
        place = replace(place, events=position)
        row = parse_object(line)
        if row is not None and (text := _dumped(row, redact_tree)) is not None:
            news.append(_event("event", place, text))
    return place, b"".join(news)


def _metrics_text(line: bytes, row: Mapping[str, Any]) -> str | None:
    """Return the row as ASCII JSON, unchanged if possible."""
    return line.decode() if line.isascii() and b"N" not in line and b"I" not in line else _dumped(row)


def _in_ascii(body: bytes) -> str:
    """Escape non-ASCII characters, because some stream readers treat U+2028 and the like as line
    ends.
    """
    return body.decode() if body.isascii() else json.dumps(json.loads(body))


def _dumped(row: Mapping[str, Any], cleaned: Callable[[Any], Any] = finite_json) -> str | None:
    """Serialise a row; None when it is nested too deeply."""
    try:
        return json.dumps(finite_json(cleaned(row)), allow_nan=False)
    except RecursionError:
        return None


def _differs(job: Job, shown: Job) -> bool:
    return job is not shown and job.model_dump(exclude=_IGNORED) != shown.model_dump(exclude=_IGNORED)


def _event(kind: str, place: Place, data: str) -> bytes:
    return ServerSentEvent(event=kind, id=str(place), data=data, sep="\n").encode()
