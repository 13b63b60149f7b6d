"""Settings of an evaluation, from the words of a command line, a recipe or a run.

Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppo_ray import plugins
from sppo_ray.config import DataSource, RewardFunction, RunConfig, permissions
from sppo_ray.config.loading import load_config, models_in
from sppo_ray.config.outside_yaml import read_yaml
from sppo_ray.errors import UserError
from sppo_ray.rundir.layout import RunDir

DEFAULT_SIZE = 256  # prompts of a procedural source
_OWN_REWARD = {
    "running-sum": "running-sum",
    "register-machine": "running-sum",
    "reasoning-gym": "reasoning-gym",
}
"""Verifier of procedural sources that have one of their own."""
LAST_NUMBER = "sppo_ray.rewards.last_number:reward"

_SUFFIX_TYPES = {".parquet": "parquet", ".jsonl": "jsonl", ".json": "jsonl"}
_SOURCES = {model.model_fields["type"].default: model for model in models_in(DataSource)}
_REWARDS = [
    model.model_fields["type"].default
    for model in models_in(RewardFunction)
    if not any(field.is_required() for field in model.model_fields.values())
]
"""Reward functions without a setting that has to be given."""


def typed_tree(model: str, recipe: str | None, data: Sequence[str], reward: str | None) -> dict[str, Any]:
    """Build the settings with data and reward function as typed. Raises UserError for an impossible
    combination.
    """
    sources = [data_source(text) for text in data]
    return evaluation_tree(
        model, recipe, sources or None, None if reward is None else reward_function(reward)
    )


def evaluation_tree(
    model: str, recipe: str | None, held_out: list[dict[str, Any]] | None, reward: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the settings of an evaluation. None = those of the recipe or the run directory
    `model`. Raises UserError for an impossible combination.
    """
    tree = _starting_tree(model, recipe, held_out)
    if held_out is not None:
        tree["data"]["held_out"] = held_out
    if not tree["data"].get("held_out"):
        raise UserError(
            "nothing to evaluate on: name files with --data, or a recipe that has data.held_out with --recipe"
        )
    if reward is not None:
        tree["reward"]["function"] = reward
    elif "function" not in tree["reward"]:
        tree["reward"]["function"] = _reward_of(tree["data"]["held_out"])
    return tree


def typed_settings(reward: str | None, overrides: Sequence[str]) -> list[str]:
    """Return the settings on the command line, which permit the code that they name."""
    return permissions.settings_in(overrides) + (["reward.function"] if reward is not None else [])


def data_source(text: str) -> dict[str, Any]:
    """Parse one --data value into a source of the settings."""
    kind, _, fields = text.partition(":")
    if kind in _SOURCES and not Path(text).exists():
        source = {"type": kind, **_fields(fields, text)}
        if "size" in _SOURCES[kind].model_fields:
            source.setdefault("size", DEFAULT_SIZE)
        return source
    return {"type": _type_of_path(text), "path": text}


def reward_function(text: str) -> dict[str, Any]:
    """Parse a --reward value into `reward.function`."""
    if text == "last-number":
        return {"type": "custom", "function": LAST_NUMBER}
    if ":" in text:  # typing it permits the package
        return {"type": "custom", "function": text, "packages": [text.partition(":")[0].partition(".")[0]]}
    if text not in _REWARDS and text not in plugins.names("rewards"):
        raise UserError(
            f"--reward {text}: no such reward function; there are {', '.join(_REWARDS)}, last-number, or "
            "package.module:function"
        )
    return {"type": text}


def _starting_tree(model: str, recipe: str | None, data: Sequence[Any] | None) -> dict[str, Any]:
    """Return the recipe's settings; without --recipe and --data those of the run directory; else
    the defaults.
    """
    run = Path(model).expanduser()
    is_run = RunDir(run).config.is_file()
    model = str(_exported(run)) if is_run else model
    if recipe is not None:
        return tree_of(load_config(recipe)) | {"model": model}
    if not data and is_run:
        return tree_of(load_config(str(RunDir(run).config))) | {"model": model}
    return {"model": model, "data": {}, "eval": {}, "rollout": {}, "reward": {}}


def _exported(run: Path) -> Path:
    exported = RunDir(run).exported_policy
    if not exported.is_dir():
        raise UserError(
            f"run directory {run} has no {exported.relative_to(run)}: let the run finish with "
            f"checkpoint.export=true (sppo-ray train ... --resume --run-dir {run}), or name a checkpoint "
            "directory"
        )
    return exported


def tree_of(config: RunConfig) -> dict[str, Any]:
    """Return the settings that an evaluation shares with a run, as a tree for `parse_settings`."""
    run = config.model_dump(mode="json")
    data = ("held_out", "max_prompt_tokens", "overlong_prompts", "system_prompt", "prompt_suffix")
    sampling = ("samples_per_prompt", "prompts", "temperature")
    shared = ("seed", "device", "rollout", "reward", "environment", "cluster")
    return {name: run[name] for name in shared} | {
        "data": {name: run["data"][name] for name in data},
        "eval": {name: run["eval"][name] for name in sampling},
    }


def _reward_of(sources: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Choose the default verifier: the task's own, or math for files."""
    kinds = {source["type"] for source in sources}
    own = {_OWN_REWARD.get(kind, "math") for kind in kinds}
    if len(own) > 1:
        raise UserError(
            f"--data of {' and '.join(sorted(kinds))} are judged by different reward functions: evaluate "
            "them separately, or name one "
            "that fits all with --reward"
        )
    return {"type": own.pop() if own else "math"}


def _type_of_path(text: str) -> str:
    path = Path(text).expanduser()
    if path.is_dir():
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            return "hf-disk"
        return "jsonl" if any(path.glob("*.jsonl")) and not any(path.glob("*.parquet")) else "parquet"
    kind = _SUFFIX_TYPES.get(path.suffix.lower())
    if kind is None:
        raise UserError(
            f"--data {text}: neither a .parquet or .jsonl file, nor a directory of them, nor a source: write "
            f"{_examples()}"
        )
    return kind


def _fields(text: str, whole: str) -> dict[str, Any]:
    fields = {}
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        if not separator:
            raise UserError(f"--data {whole}: {part!r} is not key=value; write e.g. {_examples()}")
        fields[key] = read_yaml(value, f"--data {whole}")
    return fields


def _examples() -> str:
    return "running-sum:size=256,seed=7 or reasoning-gym:task=chain_sum"
