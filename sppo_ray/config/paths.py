"""The files and directories that settings name, and where they are."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from sppo_ray.config import RunConfig
from sppo_ray.config.loading import parse_config, set_setting
from sppo_ray.errors import UserError

_BUILTIN = "builtin:"


def paths_of(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield (setting, path) of each data source and model on disk."""
    for section in ("train", "held_out"):
        for number, source in enumerate(getattr(config.data, section)):
            if "path" in type(source).model_fields:
                yield f"data.{section}.{number}.path", source.path
    roles = ("learner", "critic") if config.has_critic else ("learner",)
    for role in roles:
        model = getattr(config, role).model
        if not model.startswith(_BUILTIN):
            yield f"{role}.model", model


def is_here(path: str) -> bool:
    """Whether a path or pattern names something on this machine."""
    place = Path(path).expanduser()
    return place.exists() or bool(glob.has_magic(path) and glob.glob(str(place), recursive=True))


def with_absolute_paths(config: RunConfig, origin: str) -> RunConfig:
    """Return settings whose relative paths are resolved from the working directory, for a process
    that runs elsewhere. Raises UserError for one that is not here.
    """
    tree = config.model_dump(mode="json")
    for setting, path in paths_of(config):
        if Path(path).expanduser().is_absolute():
            continue
        if not is_here(path):
            raise UserError(
                f"{origin}: {setting}: {path}: is not in {Path.cwd()}, and a job runs in another directory: "
                "correct it, or give the absolute path that it has on the cluster"
            )
        set_setting(tree, setting, str(Path.cwd() / path))
    return parse_config(tree, origin)
