"""Check the files and modules of a submitted job: only those below the server's allowed
directories.

A relative path is resolved below these directories, because Ray chooses the working directory of a
job.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.schemas import FieldError
from sppo_ray.api.settings import ApiSettings
from sppo_ray.config import ModelReward, RunConfig
from sppo_ray.config.loading import parse_config, set_setting
from sppo_ray.config.permissions import Grants, asks_for
from sppo_ray.models.hub import parse_name


def allowed_path(path: str, settings: ApiSettings, where: str) -> Path:
    """Return the real path of `path`. Raises ApiProblem (400) when it is not below an allowed
    directory.
    """
    if "\0" in path:
        raise _outside(where, "a path with a NUL", settings)
    roots = [Path(os.path.realpath(root)) for root in settings.allow]
    candidates = [Path(path)] if Path(path).is_absolute() else [root / path for root in roots]
    confined = [
        real
        for real in (Path(os.path.realpath(c)) for c in candidates)
        if any(real.is_relative_to(r) for r in roots)
    ]
    if not confined:
        raise _outside(where, repr(path[:200]), settings)
    return next((real for real in confined if real.exists()), confined[0])


def confined(config: RunConfig, settings: ApiSettings) -> RunConfig:
    """Return `config` with absolute paths. Raises ApiProblem (400) for a path or module that is not
    allowed, 422 for a cluster address.
    """
    require_permission(config, settings)
    tree = config.model_dump(mode="json")
    for section in ("train", "held_out"):
        for number, source in enumerate(tree["data"][section]):
            if source["type"] == "hf":
                raise _on_the_hub(
                    f"data.{section}.{number}.dataset", source["dataset"], "--repo-type dataset "
                )
            if "path" in source:
                where = f"data.{section}.{number}.path"
                path = allowed_path(source["path"], settings, where)
                _require_files_inside(path, settings, where)
                source["path"] = str(path)
    for role in ("learner", "critic"):
        model = tree[role]["model"]
        if not model.startswith("builtin:"):
            tree[role]["model"] = str(_allowed_model(model, settings, f"{role}.model"))
    if config.cluster.address is not None:
        where, what = "cluster.address", "a submitted job joins the cluster that it runs on: leave it out"
        raise ApiProblem(
            422, f"{where}: {what}", kind="invalid-settings", errors=[FieldError(path=where, message=what)]
        )
    for asked in asks_for(config.reward):
        if asked.kind == "module":  # the server's permission includes an installed package
            setting = asked.setting.removesuffix(".function") + ".packages"
            set_setting(tree, setting, [asked.name.partition(".")[0]])
    for path, leaf in config.reward.leaves:
        if isinstance(leaf, ModelReward) and not leaf.model.startswith("builtin:"):
            model = allowed_path(leaf.model, settings, f"{path}.model")
            set_setting(tree, f"{path}.model", str(model))
    return parse_config(tree)


def _allowed_model(model: str, settings: ApiSettings, where: str) -> Path:
    path = allowed_path(model, settings, where)
    if parse_name(model) is not None and not path.exists():
        raise _on_the_hub(where, model)
    return path


def _on_the_hub(where: str, name: str, options: str = "") -> ApiProblem:
    detail = (
        f"{where}: there is no directory {name!r} below those that this server allows, and its jobs do "
        f"not download from the hub: fetch it there with `hf download {options}NAME --local-dir DIR`"
    )
    errors = [FieldError(path=where, message="no such directory")]
    return ApiProblem(400, detail, kind="path-outside", errors=errors)


def require_as_stored(config: RunConfig, settings: ApiSettings) -> None:
    """`confined` for the stored settings of a run that is resumed. A relative path is refused
    (409), because its meaning depends on the directory where the run was started.
    """
    sources = (*config.data.train, *config.data.held_out)
    paths = [source.path for source in sources if source.type in ("parquet", "jsonl", "hf-disk")]
    paths += [
        model
        for model in (
            config.learner.model,
            config.critic.model,
            *(reward.model for reward in config.reward.models),
        )
        if not model.startswith("builtin:")
    ]
    confined(config, settings)
    for path in paths:
        if not Path(path).is_absolute():
            what = (
                f"the run's settings name the relative path {path[:200]!r}: continue it where it was "
                "started, with --resume"
            )
            raise ApiProblem(409, what, kind="relative-path")


def grants_of(settings: ApiSettings) -> Grants:
    return Grants(settings.allow_modules, settings.allow_unconfined)


def require_permission(config: RunConfig, settings: ApiSettings) -> None:
    """Raises ApiProblem (400) for code that this server may not run, for new and resumed jobs."""
    granted = grants_of(settings)
    for asked in asks_for(config.reward, config.environment):
        if not granted.allows(asked):
            known = (
                ", ".join(
                    settings.allow_unconfined
                    if asked.flag == "--allow-unconfined"
                    else settings.allow_modules
                )
                or "none"
            )
            detail = (
                f"{asked.setting}: asks for {asked}, which this server does not allow (allowed: {known}): "
                f"see {asked.flag}"
            )
            raise ApiProblem(
                400,
                detail,
                kind="module-outside",
                errors=[FieldError(path=asked.setting, message="not allowed")],
            )


def _require_files_inside(path: Path, settings: ApiSettings, where: str) -> None:
    """Raises ApiProblem (400) when a link leads a file of the directory or pattern `path` outside.
    A pattern over directories is refused, because it could match a link later.
    """
    if not path.exists() and (glob.has_magic(str(path.parent)) or "**" in path.name):
        raise _outside(
            where, "a directory chosen by a pattern (write * and [ in the file's name alone)", settings
        )
    files = (
        path.iterdir() if path.is_dir() else path.parent.glob(path.name) if glob.has_magic(path.name) else ()
    )
    for file in files:
        allowed_path(str(file), settings, where)


def _outside(where: str, what: str, settings: ApiSettings) -> ApiProblem:
    known = (
        f"below {', '.join(map(str, settings.allow))}"
        if settings.allow
        else "nowhere: the server was started without --allow DIR"
    )
    detail = (
        f"{where}: {what} is outside what this server allows ({known}); recipes and models that ship need no "
        "such leave"
    )
    return ApiProblem(
        400,
        detail,
        kind="path-outside",
        errors=[FieldError(path=where, message="outside the allowed directories")],
    )
