"""Routes that do not concern one job: recipes, health, Prometheus, and the page."""

from __future__ import annotations

import asyncio
import functools
import os
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST

from sppo_ray import __version__
from sppo_ray.api.openapi import answer, problems
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.prometheus import exposition
from sppo_ray.api.schemas import Health, Recipe, Recipes
from sppo_ray.api.services import Ours, Viewer
from sppo_ray.config.loading import load_config, recipe_names

router = APIRouter(tags=["service"])
WEB = Path(str(resources.files("sppo_ray.api"))) / "web"
HEALTH_EXAMPLE: dict[str, Any] = {
    "status": "ok",
    "checks": {"runs": "ok", "ray": "ok"},
    "version": __version__,
}
RECIPES_EXAMPLE = {
    "recipes": [
        {"name": "quickstart", "summary": "Learns in a few minutes on 2 cores without a "
                                          "GPU.", "algorithm": "sppo",
         "model": "builtin:running-sum", "cpus": 1.35, "gpus": 0.0}
    ]
}  # fmt: skip
_TEXT = {"text/plain": {"schema": {"type": "string"}, "example": 'sppo_ray_jobs{state="RUNNING"} 1.0\n'}}


@router.get(
    "/v1/recipes",
    response_model=Recipes,
    responses=answer(200, "The recipes that ship", RECIPES_EXAMPLE) | problems(),
)
async def recipes(caller: Viewer) -> Recipes:
    """The shipped recipes, with the resources that they need."""
    return await asyncio.to_thread(_recipes)


@router.get("/healthz", response_model=Health, responses=answer(200, "The server runs", HEALTH_EXAMPLE))
async def healthz() -> Health:
    """Whether the server runs. Needs no token and has no rate limit."""
    return Health(status="ok", version=__version__)


@router.get(
    "/readyz",
    response_model=Health,
    responses=answer(200, "Runs can be read; `degraded` when Ray is away", HEALTH_EXAMPLE)
    | {503: {"description": "The runs cannot be read", "content": problems(503)[503]["content"]}},
)
async def readyz(ours: Ours) -> Health:
    """Whether the server can answer. It is ready without Ray too: everything except submitting
    works.
    """
    runs = ours.settings.runs
    if not await asyncio.to_thread(os.access, runs, os.R_OK | os.X_OK):
        raise ApiProblem(
            503,
            "the directory of runs cannot be read: is it mounted?",
            kind="not-ready",
            headers={"Retry-After": "5"},
        )
    up = ours.ray.is_up
    checks = {"runs": "ok", "ray": "ok" if up else "the job server does not answer"}
    return Health(status="ok" if up else "degraded", checks=checks, version=__version__)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus text format", "content": _TEXT}} | problems(),
)
async def prometheus(ours: Ours, caller: Viewer) -> Response:
    """Metrics of jobs and fleets for Prometheus."""
    jobs = [entry.job for entry in await ours.index.jobs()]
    text = await asyncio.to_thread(exposition, jobs, ray_up=ours.ray.is_up, streams=ours.streams.open)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def add_page(app: FastAPI) -> None:
    """Add the page at / and its files below /ui/. They hold no data and need no token; the page
    asks for one.
    """

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(WEB / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/ui", _PageFiles(directory=WEB), name="ui")


class _PageFiles(StaticFiles):
    """Static files that browsers revalidate with their ETag, so that a new release shows at
    once.
    """

    def file_response(self, *arguments: Any, **keywords: Any) -> Response:
        response = super().file_response(*arguments, **keywords)
        response.headers["Cache-Control"] = "no-cache"
        return response


@functools.cache
def _recipes() -> Recipes:
    found = []
    for name in recipe_names():
        config = load_config(name)
        found.append(
            Recipe(
                name=name,
                summary=_first_comment(name),
                algorithm=config.algorithm.type,
                model=config.learner.model,
                cpus=config.logical_cpus(),
                gpus=config.logical_gpus(),
            )
        )
    return Recipes(recipes=found)


def _first_comment(name: str) -> str:
    """Return the leading comment lines of a recipe."""
    text = (resources.files("sppo_ray") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)
