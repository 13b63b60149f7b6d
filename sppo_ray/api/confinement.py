"""Which files and modules a submitted job may touch: only what lies below the directories that the server was started with.

A relative path is taken below these directories too, and made absolute: where a job's process starts is Ray's affair.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.schemas import FieldError
from sppo_ray.api.settings import ApiSettings
from sppo_ray.config import RunConfig
from sppo_ray.config_loading import parse_config


def allowed_path(path: str, settings: ApiSettings, where: str) -> Path:
    """The real path of `path`. Raises ApiProblem (400) when it is not below one of the allowed directories."""
    if "\0" in path:
        raise _outside(where, "a path with a NUL", settings)
    roots = [Path(os.path.realpath(root)) for root in settings.allow]
    candidates = [Path(path)] if Path(path).is_absolute() else [root / path for root in roots]
    confined = [real for real in (Path(os.path.realpath(c)) for c in candidates) if any(real.is_relative_to(r) for r in roots)]
    if not confined:
        raise _outside(where, repr(path[:200]), settings)
    return next((real for real in confined if real.exists()), confined[0])


def confined(config: RunConfig, settings: ApiSettings) -> RunConfig:
    """`config` with absolute paths. Raises ApiProblem (400) for a path or a module outside, 422 for a cluster address."""
    tree = config.model_dump(mode="json")
    for section in ("train", "held_out"):
        for number, source in enumerate(tree["data"][section]):
            if "path" in source:
                where = f"data.{section}.{number}.path"
                path = allowed_path(source["path"], settings, where)
                _require_files_inside(path, settings, where)
                source["path"] = str(path)
    for role in ("learner", "critic"):
        model = tree[role]["model"]
        if not model.startswith("builtin:"):
            tree[role]["model"] = str(allowed_path(model, settings, f"{role}.model"))
    _check_module(tree["reward"]["function"], settings)
    if config.cluster.address is not None:
        where, what = "cluster.address", "a submitted job joins the cluster that it runs on: leave it out"
        raise ApiProblem(422, f"{where}: {what}", kind="invalid-settings", errors=[FieldError(path=where, message=what)])
    return parse_config(tree)


def _require_files_inside(path: Path, settings: ApiSettings, where: str) -> None:
    """Raises ApiProblem (400) when a file that the directory or pattern `path` stands for lies outside: behind a link, that is.

    A pattern that chooses among directories would choose links among them as well, whenever it is looked at.
    """
    if not path.exists() and (glob.has_magic(str(path.parent)) or "**" in path.name):
        raise _outside(where, "a directory chosen by a pattern (write * and [ in the file's name alone)", settings)
    files = path.iterdir() if path.is_dir() else path.parent.glob(path.name) if glob.has_magic(path.name) else ()
    for file in files:
        allowed_path(str(file), settings, where)


def _check_module(function: dict[str, Any], settings: ApiSettings) -> None:
    """A verifier of one's own is code that runs on the cluster."""
    if function["type"] != "custom":
        return
    module = function["function"].partition(":")[0]
    if not any(module == allowed or module.startswith(f"{allowed}.") for allowed in settings.allow_modules):
        where, known = "reward.function.function", ", ".join(settings.allow_modules) or "none"
        detail = f"{where}: module {module[:100]!r} is not among those that this server allows ({known}): see --allow-module"
        raise ApiProblem(400, detail, kind="module-outside", errors=[FieldError(path=where, message="not an allowed module")])
    function["packages"] = [module.partition(".")[0]]  # with the server's leave it may be an installed one; no other may


def _outside(where: str, what: str, settings: ApiSettings) -> ApiProblem:
    known = (
        f"below {', '.join(map(str, settings.allow))}"
        if settings.allow
        else "nowhere: the server was started without --allow DIR"
    )
    detail = f"{where}: {what} is outside what this server allows ({known}); recipes and models that ship need no such leave"
    return ApiProblem(
        400, detail, kind="path-outside", errors=[FieldError(path=where, message="outside the allowed directories")]
    )
