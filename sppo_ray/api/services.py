"""What handlers work with, made once a server, and who is asking."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Path, Request, Security
from fastapi.security import HTTPBearer
from pydantic import BeforeValidator

from sppo_ray.api.index import JobIndex
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.ray_jobs import RayJobs
from sppo_ray.api.settings import ApiSettings
from sppo_ray.api.shield import ADMITTED, CALLER
from sppo_ray.api.tokens import Caller

_bearer = HTTPBearer(
    auto_error=False, scheme_name="bearer", description="A token of `sppo-ray token`: Authorization: Bearer TOKEN"
)


class Streams:
    """Counts open streams, so that nobody can open them without end."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.open = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A place for one stream. Raises ApiProblem (429) when all are taken."""
        self.require_free()
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def require_free(self) -> None:
        if self.open >= self._most:
            detail = f"{self._most} event and log streams are open: close one, or raise --max-streams"
            raise ApiProblem(429, detail, kind="too-many-streams", headers={"Retry-After": "10"})

    async def counted(self, chunks: AsyncIterator[bytes], is_admitted: Callable[[], bool]) -> AsyncIterator[bytes]:
        """`chunks` for as long as the caller's token is good: a revoked one gets nothing more."""
        with self.one():
            async for chunk in chunks:
                if not is_admitted():
                    return
                yield chunk


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
        detail = "no valid token: send `Authorization: Bearer TOKEN`; `sppo-ray token NAME --tokens FILE` makes one"
        raise ApiProblem(401, detail, headers={"WWW-Authenticate": 'Bearer realm="sppo-ray"'})
    return caller


async def _admitted(request: Request) -> Callable[[], bool]:
    return request.scope[ADMITTED]


async def _operator(caller: Annotated[Caller, Depends(_viewer)]) -> Caller:
    if not caller.may_write:
        raise ApiProblem(403, f"token {caller.name} is a viewer's: this takes an operator's", kind="wrong-role")
    return caller


JobId = Annotated[str, Path(description="A job's id, or the run id of its directory", examples=["first"])]


def _digits(text: Any) -> Any:
    """A query's text as an integer is written; pydantic alone takes 1.0 and " 1" as well."""
    if isinstance(text, str) and not (text.isascii() and text.isdigit()):
        raise ValueError("a whole number, e.g. 20")
    return text


DIGITS = BeforeValidator(_digits)  # behind Query(), or the document would not know its bounds
Ours = Annotated[Services, Depends(_services)]
Viewer = Annotated[Caller, Depends(_viewer)]
Operator = Annotated[Caller, Depends(_operator)]
Admitted = Annotated[Callable[[], bool], Depends(_admitted)]
