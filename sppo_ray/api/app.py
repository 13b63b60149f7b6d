"""Build the server.

request --> Shield (who, how much, how often) --> CORS, when asked for --> handler
    --> index, run directories, Ray
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from sppo_ray import __version__
from sppo_ray.api import openapi, problems
from sppo_ray.api.index import JobIndex
from sppo_ray.api.ray_jobs import RayJobs
from sppo_ray.api.routes import control, downloads, jobs, records, service
from sppo_ray.api.security import SecurityMiddleware
from sppo_ray.api.services import Services, Streams
from sppo_ray.api.settings import ApiSettings
from sppo_ray.api.tokens import TokenStore
from sppo_ray.errors import UserError


def create_app(settings: ApiSettings) -> FastAPI:
    """Create the server as an ASGI application. Raises UserError when the tokens cannot be read, or
    when there are none and `settings.host` is not loopback.
    """
    tokens = TokenStore(settings.tokens)
    if not tokens.required and not settings.is_loopback:
        raise UserError(
            f"without tokens the server stays on loopback, and --host is {settings.host}: make one with "
            "`sppo-ray token NAME --role operator --tokens FILE` and add --tokens FILE, or leave --host out"
        )
    app = FastAPI(
        title="sppo-ray",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,  # they load external scripts, which the page's policy forbids
        redoc_url=None,
        generate_unique_id_function=_operation_id,
        redirect_slashes=False,
    )
    ray = RayJobs(settings.ray_address)
    index = JobIndex(settings.runs, ray, refresh_s=settings.refresh_s)
    app.state.services = Services(
        settings, index, ray, Streams(settings.max_streams, settings.max_streams_per_caller)
    )
    for router in (jobs.router, control.router, records.router, downloads.router, service.router):
        app.include_router(router)
    service.add_page(app)
    problems.install(app)
    openapi.install(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
        )
    app.add_middleware(SecurityMiddleware, settings=settings, tokens=tokens)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    services.ray.start()
    try:
        yield
    finally:
        await services.ray.close()


def _operation_id(route: APIRoute) -> str:
    return route.name
