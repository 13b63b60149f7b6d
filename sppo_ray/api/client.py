"""A typed client of the REST API. Its methods are named after the operations of the OpenAPI
document; a test compares the two.

with Client("http://127.0.0.1:8642", token="sppo_...") as client:
    job = client.submit_job(JobRequest(recipe="quickstart", overrides={"loop.steps": 20}))
    for event in client.event_stream(job.id):
        print(event.kind, event.data)
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from sppo_ray.api.schemas import (
    Downloads,
    Evaluations,
    FieldError,
    Health,
    Job,
    JobList,
    JobPatch,
    JobRequest,
    JobState,
    MetricRows,
    Problem,
    Recipes,
    RunSettings,
    SamplePage,
)
from sppo_ray.errors import UserError

DEFAULT_URL = "http://127.0.0.1:8642"
URL_VARIABLE, TOKEN_VARIABLE = "SPPO_RAY_API", "SPPO_RAY_API_TOKEN"
RETRY_S = 1.0
Answer = TypeVar("Answer", bound=BaseModel)


class ApiError(UserError):
    """The server refused the request; `problem` is its problem document."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(_readable(problem))


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event; its kind is step, evaluation, event, state, reset or end."""

    kind: str
    id: str
    data: dict[str, Any]


class Client:
    """Client of one server. `close()` it, or use it as a context manager.

    Every method raises ApiError when the server refuses and UserError when it cannot be reached.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`url` None = $SPPO_RAY_API, else this machine; `token` None = $SPPO_RAY_API_TOKEN, else
        none.
        """
        self.url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        token = token or os.environ.get(TOKEN_VARIABLE)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        parsed = urlsplit(self.url)
        if parsed.scheme not in ("http", "https") or not parsed.netloc:
            raise UserError(
                f"{self.url}: not the URL of a server: write it as {DEFAULT_URL}, see --url and "
                f"${URL_VARIABLE}"
            )
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # ----------------------------------------------------------------------------------------- jobs

    def list_jobs(
        self,
        *,
        state: list[JobState] | None = None,
        name: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobList:
        return self._get("/v1/jobs", JobList, state=state, name=name, limit=limit, cursor=cursor)

    def submit_job(self, request: JobRequest) -> Job:
        return self._call("POST", "/v1/jobs", Job, body=request)

    def get_job(self, job_id: str) -> Job:
        return self._get(_at(job_id), Job)

    def delete_job(self, job_id: str) -> None:
        self._send("DELETE", _at(job_id))

    # -------------------------------------------------------------------------------------- control

    def patch_job(self, job_id: str, change: JobPatch) -> Job:
        return self._call("PATCH", _at(job_id), Job, body=change)

    def checkpoint_job(self, job_id: str) -> Job:
        return self._call("POST", f"{_at(job_id)}/checkpoint", Job)

    def stop_job(self, job_id: str, *, force: bool = False) -> Job:
        return self._call("POST", f"{_at(job_id)}/stop", Job, force=force)

    # -------------------------------------------------------------------------------------- records

    def metrics(
        self,
        job_id: str,
        *,
        name: list[str] | None = None,
        first: int = 0,
        last: int | None = None,
        limit: int = 10_000,
    ) -> MetricRows:
        return self._get(
            f"{_at(job_id)}/metrics", MetricRows, name=name, limit=limit, **{"from": first, "to": last}
        )

    def metrics_arrow(
        self, job_id: str, *, name: list[str] | None = None, first: int = 0, last: int | None = None
    ) -> bytes:
        """Return the metrics as an Arrow IPC stream: `pyarrow.ipc.open_stream(data).read_all()`."""
        query = {"name": name, "from": first, "to": last, "format": "arrow"}
        return self._send("GET", f"{_at(job_id)}/metrics", **query).content

    def event_stream(
        self, job_id: str, *, last_event_id: str | None = None, reconnect: bool = True
    ) -> Iterator[Event]:
        """Yield events until the job has ended. After a broken connection or a server restart it
        continues after the last event, unless `reconnect` is false.
        """
        while True:
            try:
                for event in self._events(job_id, last_event_id):
                    last_event_id = event.id or last_event_id
                    yield event
                    if event.kind == "end":
                        return
            except httpx.TransportError as error:
                if not reconnect:
                    raise self._unreachable(error) from None
            else:
                if not reconnect or self.get_job(job_id).state.is_final:
                    return
            time.sleep(RETRY_S)

    def log(self, job_id: str, *, tail: int = 1000, follow: bool = False) -> Iterator[str]:
        """Yield pieces of the job's output."""
        query = _query(tail=tail, follow=follow)
        try:
            with self._http.stream(
                "GET", f"{_at(job_id)}/logs", params=query, timeout=_patient(follow)
            ) as response:
                _require_success(response)
                yield from response.iter_text()
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def trajectories(
        self,
        job_id: str,
        *,
        step: int | None = None,
        sort: Literal["surprise", "reward", "length", "index"] = "surprise",
        order: Literal["desc", "asc"] = "desc",
        limit: int = 20,
        cursor: str | None = None,
    ) -> SamplePage:
        path = f"{_at(job_id)}/trajectories"
        return self._get(path, SamplePage, step=step, sort=sort, order=order, limit=limit, cursor=cursor)

    def evaluations(self, job_id: str) -> Evaluations:
        return self._get(f"{_at(job_id)}/evaluations", Evaluations)

    def config(self, job_id: str) -> RunSettings:
        return self._get(f"{_at(job_id)}/config", RunSettings)

    def downloads(self, job_id: str) -> Downloads:
        return self._get(f"{_at(job_id)}/downloads", Downloads)

    def export(self, job_id: str) -> Iterator[bytes]:
        """Yield pieces of a tar archive with the exported models."""
        try:
            with self._http.stream("GET", f"{_at(job_id)}/export") as response:
                _require_success(response)
                yield from response.iter_bytes()
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def report(self, job_id: str) -> str:
        """Return the HTML file that `sppo-ray report` wrote."""
        return self._send("GET", f"{_at(job_id)}/report").text

    # -------------------------------------------------------------------------------------- service

    def recipes(self) -> Recipes:
        return self._get("/v1/recipes", Recipes)

    def healthz(self) -> Health:
        return self._get("/healthz", Health)

    def readyz(self) -> Health:
        return self._get("/readyz", Health)

    def prometheus(self) -> str:
        return self._send("GET", "/metrics").text

    # ---------------------------------------------------------------------------------------- wires

    def _get(self, path: str, model: type[Answer], **query: Any) -> Answer:
        return self._call("GET", path, model, **query)

    def _call(
        self, method: str, path: str, model: type[Answer], *, body: BaseModel | None = None, **query: Any
    ) -> Answer:
        response = self._send(method, path, body=body, **query)
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise UserError(
                f"{self.url}: its answer is not this release's ({error.errors()[0]['msg']}): is it sppo-ray?"
            ) from None

    def _send(self, method: str, path: str, *, body: BaseModel | None = None, **query: Any) -> httpx.Response:
        content = None if body is None else body.model_dump(mode="json", exclude_unset=True)
        try:
            response = self._http.request(method, path, params=_query(**query), json=content)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        _require_success(response)
        return response

    def _events(self, job_id: str, last_event_id: str | None) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream"} | (
            {"Last-Event-ID": last_event_id} if last_event_id else {}
        )
        with self._http.stream(
            "GET", f"{_at(job_id)}/events", headers=headers, timeout=_patient(True)
        ) as response:
            _require_success(response)
            yield from parse_events(lines_of(response.iter_text()))

    def _unreachable(self, error: httpx.TransportError) -> UserError:
        what = str(error) or type(error).__name__
        return UserError(
            f"{self.url} does not answer ({what}): is `sppo-ray serve` running? --url or ${URL_VARIABLE} "
            "says where"
        )


def lines_of(pieces: Iterator[str]) -> Iterator[str]:
    """Split a stream into lines as server-sent events require; httpx's `iter_lines` also splits at
    U+2028 and the like, inside JSON.
    """
    rest = ""
    for piece in pieces:
        *lines, rest = (rest + piece).split("\n")
        yield from (line.removesuffix("\r") for line in lines)


def parse_events(lines: Iterator[str]) -> Iterator[Event]:
    """Parse server-sent events from the lines of a response, without comments (pings)."""
    fields: dict[str, str] = {}
    data: list[str] = []
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name:
                fields[name] = value
            continue
        if data:
            yield Event(fields.get("event", "message"), fields.get("id", ""), json.loads("\n".join(data)))
        fields, data = {}, []


def wait_for(
    client: Client, job_id: str, until: Callable[[Job], bool], *, timeout_s: float, every_s: float = 1.0
) -> Job:
    """Poll the job until `until(job)` is true. Raises TimeoutError with the job's state."""
    deadline = time.monotonic() + timeout_s
    while True:
        job = client.get_job(job_id)
        if until(job):
            return job
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"job {job_id} is {job.state} ({job.phase}) at step {job.step} after {timeout_s:.0f} s"
            )
        time.sleep(every_s)


def _require_success(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:  # a proxy between client and server answered
        text = response.text[:200]
        problem = Problem(
            type="about:blank",
            title=response.reason_phrase,
            status=response.status_code,
            detail=text,
            errors=[],
        )
    raise ApiError(problem)


def _readable(problem: Problem) -> str:
    def is_told(error: FieldError) -> bool:
        return error.message in problem.detail

    more = "".join(f"\n  {error.path}: {error.message}" for error in problem.errors if not is_told(error))
    return f"{problem.detail}{more}"


def _at(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _query(**query: Any) -> dict[str, Any]:
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in query.items()
        if value is not None
    }


def _patient(follow: bool) -> httpx.Timeout:
    """A stream may be silent for long; the server pings every 15 s where possible."""
    return httpx.Timeout(10.0, read=None if follow else 60.0)
