"""Dependencies of handlers: services created once per server, and the caller."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Path, Request, Security
from fastapi.security import HTTPBearer
from pydantic import BeforeValidator

from sppo_ray.api.index import JobIndex
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.ray_jobs import RayJobs
from sppo_ray.api.security import ADMITTED, CALLER, CHALLENGE, NO_TOKEN, SHARE
from sppo_ray.api.settings import ApiSettings
from sppo_ray.api.tokens import Caller

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="bearer",
    description="A token of `sppo-ray token`: Authorization: Bearer TOKEN",
)


class Streams:
    """Limits open streams, in total and for each caller."""

    def __init__(self, most: int, most_per_caller: int) -> None:
        self._most, self._most_per_caller = most, most_per_caller
        self._open: Counter[str] = Counter()  # by the caller's key

    @property
    def open(self) -> int:
        return self._open.total()

    @contextlib.contextmanager
    def one(self, share: str) -> Iterator[None]:
        """Reserve a place for one stream. Raises ApiProblem (429) when all are taken."""
        self.require_free(share)
        self._open[share] += 1
        try:
            yield
        finally:
            self._open[share] -= 1
            if not self._open[share]:
                del self._open[share]

    def require_free(self, share: str) -> None:
        if self._open[share] >= self._most_per_caller:
            raise _too_many(f"you have {self._most_per_caller}", "--max-streams-per-caller")
        if self.open >= self._most:
            raise _too_many(f"all callers together have {self._most}", "--max-streams")

    async def counted(self, chunks: AsyncIterator[bytes], visit: Visit) -> AsyncIterator[bytes]:
        """Yield `chunks` while the caller's token is valid; revoking it ends the stream."""
        with self.one(visit.share):
            async for chunk in chunks:
                if not visit.is_admitted():
                    return
                yield chunk


def _too_many(what: str, setting: str) -> ApiProblem:
    detail = f"{what} event and log streams open: close one, or raise {setting}"
    return ApiProblem(429, detail, kind="too-many-streams", headers={"Retry-After": "10"})


@dataclass(frozen=True, slots=True)
class Visit:
    """One request, for answers that take long."""

    share: str  # whose limits count
    is_admitted: Callable[[], bool]  # whether the token is still valid


@dataclass(frozen=True, slots=True)
class Services:
    settings: ApiSettings
    index: JobIndex
    ray: RayJobs
    streams: Streams


async def _services(request: Request) -> Services:
    return request.app.state.services


async def _viewer(request: Request, _: Annotated[object, Security(_bearer)]) -> Caller:
    caller: Caller | None = request.scope[CALLER]
    if caller is None:
        raise ApiProblem(401, NO_TOKEN, headers=CHALLENGE)
    return caller


async def _visit(request: Request) -> Visit:
    return Visit(request.scope[SHARE], request.scope[ADMITTED])


async def _operator(caller: Annotated[Caller, Depends(_viewer)]) -> Caller:
    if not caller.may_write:
        raise ApiProblem(
            403, f"token {caller.name} is a viewer's: this takes an operator's", kind="wrong-role"
        )
    return caller


JobId = Annotated[str, Path(description="A job's id, or the run id of its directory", examples=["first"])]


def _digits(text: Any) -> Any:
    """Accept only digits in a query; pydantic alone accepts 1.0 and " 1" too."""
    if isinstance(text, str) and not (text.isascii() and text.isdigit()):
        raise ValueError("a whole number, e.g. 20")
    return text


DIGITS = BeforeValidator(_digits)  # after Query(), or the OpenAPI document would miss its bounds
Ours = Annotated[Services, Depends(_services)]
Viewer = Annotated[Caller, Depends(_viewer)]
Operator = Annotated[Caller, Depends(_operator)]
Visiting = Annotated[Visit, Depends(_visit)]
