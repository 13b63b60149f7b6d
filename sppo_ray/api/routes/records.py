"""/v1/jobs/{id}/...: the records of a run: metrics, events, logs, samples, evaluations,
settings.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from sse_starlette import EventSourceResponse

from sppo_ray.api import events, logs, metrics_query, samples
from sppo_ray.api.openapi import answer, problems
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.schemas import Evaluations, MetricRows, RunSettings, SamplePage
from sppo_ray.api.services import DIGITS, JobId, Ours, Viewer, Visiting
from sppo_ray.config.outside_yaml import write_yaml
from sppo_ray.redaction import redact_tree
from sppo_ray.rundir.evaluations import served_evaluations
from sppo_ray.rundir.jsonlines import finite_json
from sppo_ray.rundir.record import settings_of

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["records"])
PING_S = 15
EVALUATION_BYTES = 32 << 20  # bytes of all evaluations in an answer
SEND_TIMEOUT_S = 60.0  # a client that reads nothing for this time is disconnected
MAX_STEP = metrics_query.MAX_STEP
ROWS_EXAMPLE = {
    "names": ["reward/mean"],
    "rows": [{"step": 1, "time": 1767225604.2, "reward/mean": 0.41}],
    "next_from": None,
}
SAMPLE_EXAMPLE = {
    "step": 12, "first_step": 1, "last_step": 12, "total": 256, "next_cursor": "1",
    "items": [{
        "index": 17, "request_id": "12/17/0", "prompt_id": "running-sum/3", "source": "running-sum",
        "prompt": "a7b5=",
        "ground_truth": "12",
        "response": "12", "turns": [], "tokens": 3,
        "finish_reason": "stop", "reward": 1.0, "reason": "correct",
        "value": 0.1, "surprise": 0.9,
        "advantage": 0.9, "staleness": 0, "policy_version": 9, "worker": "rollout-0", "seconds": 0.4,
    }],
}  # fmt: skip
EVENTS_EXAMPLE = (
    'event: step\nid: 1f.812-20.96\ndata: {"step": 3, "time": 1767225604.2, "reward/mean": 0.41}\n\n'
)
_EVENT = {
    "type": "object",  # of each event; a stream has no end that a schema could describe
    "properties": {
        "event": {"type": "string", "enum": ["step", "evaluation", "event", "state", "reset", "end"]},
        "id": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "id", "data"],
}
LOG_EXAMPLE = (
    "starting 4 actors on cpu: rollout-0, learner-0, critic-0, reward\n"
    "step 1/60  reward 0.41  held-out 0.40  len 4\n"
)
EVALUATIONS_EXAMPLE = {
    "evaluations": [
        {
            "step": 10,
            "policy_version": 10,
            "k": 1,
            "overall": {"accuracy": 0.55, "accuracy_low": 0.49, "accuracy_high": 0.61},
        }
    ]
}
CONFIG_EXAMPLE = {"yaml": "name: quickstart\nseed: 1\n", "settings": {"name": "quickstart", "seed": 1}}
_TEXT = {"schema": {"type": "string"}, "example": LOG_EXAMPLE}
_BINARY = {"schema": {"type": "string", "format": "binary"}}


@router.get(
    "/metrics",
    response_model=MetricRows,
    responses={
        200: {"description": "Rows by step", "content": {
            "application/json": {"example": ROWS_EXAMPLE}, metrics_query.ARROW: _BINARY}}
    } | problems(404),
)  # fmt: skip
async def metrics(
    job_id: JobId,
    ours: Ours,
    caller: Viewer,
    name: Annotated[
        list[str] | None,
        Query(max_length=200, description="Metric; repeatable; `eval/*` takes all that begin so"),
    ] = None,
    first: Annotated[int, Query(alias="from", ge=0, le=MAX_STEP, description="First step"), DIGITS] = 0,
    last: Annotated[int | None, Query(alias="to", ge=0, le=MAX_STEP, description="Last step"), DIGITS] = None,
    limit: Annotated[int, Query(ge=1, le=100_000, description="Rows at most (json)"), DIGITS] = 10_000,
    format: Annotated[
        Literal["json", "arrow"], Query(description="arrow: an Arrow IPC stream of all the rows")
    ] = "json",
) -> Response:
    """Metrics by name and step range. Unknown names are left out."""
    run_dir = await run_dir_of(ours, job_id)
    if format == "arrow":
        stream = metrics_query.metric_stream(run_dir, names=name or (), first=first, last=last)
        return StreamingResponse(stream, media_type=metrics_query.ARROW)
    return await _json(
        lambda: dict(
            metrics_query.metric_rows(run_dir, names=name or (), first=first, last=last, limit=limit)
        )
    )


@router.get(
    "/events",
    response_class=Response,
    responses={
        200: {"description": "Server-sent events: step, evaluation, event, state, reset, end",
              "content": {"text/event-stream": {"schema": _EVENT, "example": EVENTS_EXAMPLE}}},
        204: {"description": "The job has ended and Last-Event-ID was its last event: do not come back"},
    } | problems(404),
)  # fmt: skip
async def event_stream(
    job_id: JobId,
    ours: Ours,
    caller: Viewer,
    visit: Visiting,
    last_event_id: Annotated[
        str | None, Header(max_length=200, description="Go on behind this event")
    ] = None,
) -> Response:
    """Follow the job: all events so far (or since Last-Event-ID), then new events, until it has
    ended.
    """
    entry = await ours.index.get(job_id)
    place = events.Place.parse(last_event_id)
    if await events.is_exhausted(entry, place):
        return Response(status_code=204)
    ours.streams.require_free(visit.share)
    stream = ours.streams.counted(events.follow(ours.index, job_id, place), visit)
    return EventSourceResponse(stream, ping=PING_S, sep="\n", send_timeout=SEND_TIMEOUT_S)


@router.get(
    "/logs",
    response_class=Response,
    responses={200: {"description": "Plain text", "content": {"text/plain": _TEXT}}} | problems(404, 503),
)
async def log(
    job_id: JobId,
    ours: Ours,
    caller: Viewer,
    visit: Visiting,
    tail: Annotated[int, Query(ge=0, le=100_000, description="Lines from the end"), DIGITS] = 1000,
    follow: Annotated[bool, Query(description="Go on until the job has ended")] = False,
) -> Response:
    """The job's output, with secrets redacted."""
    lines = await logs.log_of(ours.index, ours.ray, job_id, tail=tail, follow=follow)
    if follow:
        ours.streams.require_free(visit.share)
        lines = ours.streams.counted(lines, visit)
    return StreamingResponse(lines, media_type="text/plain")


@router.get(
    "/trajectories",
    response_model=SamplePage,
    responses=answer(200, "One page", SAMPLE_EXAMPLE) | problems(404),
)
async def trajectories(
    job_id: JobId,
    ours: Ours,
    caller: Viewer,
    step: Annotated[int | None, Query(ge=0, le=MAX_STEP, description="Left out: the newest"), DIGITS] = None,
    sort: Annotated[samples.Sort, Query(description="surprise is |reward - value|")] = "surprise",
    order: Annotated[
        Literal["desc", "asc"], Query(description="Samples without the figure come last in both")
    ] = "desc",
    limit: Annotated[int, Query(ge=1, le=200, description="Samples at most"), DIGITS] = 20,
    cursor: Annotated[
        str | None, Query(pattern=r"^[0-9]{1,9}$", description="next_cursor of the page before")
    ] = None,
) -> Response:
    """The samples of a step: prompt, response, reward and its reason, value, advantage; the most
    surprising first.
    """
    run_dir, descending, offset = await run_dir_of(ours, job_id), order == "desc", int(cursor or 0)

    def page() -> dict[str, Any]:
        found = samples.sample_page(
            run_dir, step=step, sort=sort, descending=descending, limit=limit, offset=offset
        )
        return found.model_dump()

    return await _json(page)


@router.get(
    "/evaluations",
    response_model=Evaluations,
    responses=answer(200, "By step", EVALUATIONS_EXAMPLE) | problems(404),
)
async def evaluations(job_id: JobId, ours: Ours, caller: Viewer) -> Response:
    """Every held-out evaluation in full, by step."""
    run_dir = await run_dir_of(ours, job_id)
    return await _json(lambda: {"evaluations": served_evaluations(run_dir, most=EVALUATION_BYTES)})


@router.get(
    "/config",
    response_model=RunSettings,
    responses=answer(200, "The settings", CONFIG_EXAMPLE) | problems(404),
)
async def config(job_id: JobId, ours: Ours, caller: Viewer) -> Response:
    """The resolved settings of the run, with secrets redacted."""
    run_dir = await run_dir_of(ours, job_id)
    return await _json(lambda: _settings(run_dir))


async def run_dir_of(ours: Ours, job_id: str) -> Path:
    """Return the job's run directory. Raises ApiProblem (404) without a job or a directory."""
    entry = await ours.index.get(job_id)
    if entry.record is None:
        raise ApiProblem(
            404,
            f"job {job_id!r} has no run directory here: it has just begun, or writes elsewhere",
            kind="no-run-directory",
        )
    return entry.record.path


def _settings(run_dir: Path) -> dict[str, Any]:
    tree = settings_of(run_dir)
    if not tree:
        raise ApiProblem(404, "the settings of this run are not written yet", kind="no-config")
    clean = redact_tree(json.loads(json.dumps(tree, default=str)))
    return {"yaml": write_yaml(clean), "settings": clean}


async def _json(make: Callable[[], Mapping[str, Any]]) -> Response:
    """Return the JSON of `make()`, computed and serialised in a thread."""
    body = await asyncio.to_thread(lambda: _written(make()))
    return Response(body, media_type="application/json")


def _written(content: Mapping[str, Any]) -> bytes:
    """Serialise a long list item by item: a single call would block the interpreter, and so the
    event loop, for seconds.
    """
    parts = []
    for name, value in content.items():
        is_list = isinstance(value, list)
        text = f"[{', '.join(_text_of(item) for item in value)}]" if is_list else _text_of(value)
        parts.append(f"{json.dumps(name)}: {text}")
    return f"{{{', '.join(parts)}}}".encode()


def _text_of(item: Any) -> str:
    return json.dumps(finite_json(item), allow_nan=False)
