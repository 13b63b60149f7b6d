"""The settings of a call: a recipe, a configuration or a dict, with the caller's changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo_ray import plugins
from sppo_ray.algorithms.base import AlgorithmSpec
from sppo_ray.config import RunConfig
from sppo_ray.config.loading import parse_config, recipe_tree, set_setting

Recipe = str | Path | RunConfig | Mapping[str, Any]


def load_config(recipe: Recipe, **changes: Any) -> RunConfig:
    """Return the checked settings of a recipe that ships, a YAML file, a configuration or a dict.

    `changes` are sections or single settings: `loop={"steps": 20}`, `seed=3`,
    `**{"loop.steps": 20}`. A dict with a `type` replaces its section, any other dict changes the
    settings that it names. `algorithm` may also be an `AlgorithmSpec`. Raises UserError as the
    command line does.
    """
    origin, tree = tree_of(recipe)
    apply(tree, changes)
    return parse_config(tree, origin)


def tree_of(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """Return (name for messages, settings as written). Raises UserError."""
    if isinstance(recipe, RunConfig):
        return recipe.name, recipe.model_dump(mode="json")
    if isinstance(recipe, Mapping):
        return "config", copy.deepcopy(dict(recipe))
    return recipe_tree(str(recipe))


def apply(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Change a settings tree in place. Raises UserError for a place that it does not have."""
    for key, value in changes.items():
        if isinstance(value, AlgorithmSpec):
            chosen, now = algorithm_setting(value), tree.get(key)
            if not isinstance(now, Mapping) or now.get("type") != chosen["type"]:  # else its settings stay
                tree[key] = chosen
        elif isinstance(value, Mapping) and "type" not in value and value:
            apply(tree, {f"{key}.{name}": inner for name, inner in value.items()})
        else:
            set_setting(tree, key, copy.deepcopy(value))


def algorithm_setting(algorithm: AlgorithmSpec) -> dict[str, str]:
    """Return the section `algorithm`. Settings of this process can name it from now on."""
    name = algorithm.settings.model_fields["type"].default
    plugins.register("algorithms", name, algorithm)
    return {"type": name}


def names_in(changes: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the names of the settings that `changes` name, down to the last section."""
    found = []
    for key, value in changes.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            found += names_in(value, f"{prefix}{key}.")
    return found
