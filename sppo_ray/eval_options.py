"""What a user writes after `sppo-ray eval`, as settings: data by name, rewards by name, a recipe's or a run's own settings.

    --data FILE|DIRECTORY|GLOB            Parquet in the field's format, JSON lines, or a Hugging Face dataset, by its suffix
    --data running-sum:size=256,seed=7    a source of the settings with its fields; procedural ones have 256 prompts unless told
    --reward math | running-sum | reasoning-gym | last-number | PACKAGE.MODULE:FUNCTION

Imports neither torch nor Ray.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sppo_ray.config import DataSource, RewardFunction, RunConfig
from sppo_ray.config_loading import load_config, models_in, parse_settings
from sppo_ray.errors import UserError
from sppo_ray.evaluation_config import EvaluationConfig

DEFAULT_SIZE = 256  # prompts of a procedural source
LAST_NUMBER = "sppo_ray.rewards.last_number:reward"
EXPORT = Path("export", "policy")  # below a run directory

_SUFFIX_TYPES = {".parquet": "parquet", ".jsonl": "jsonl", ".json": "jsonl"}
_SOURCES = {model.model_fields["type"].default: model for model in models_in(DataSource)}
_REWARDS = [model.model_fields["type"].default for model in models_in(RewardFunction)]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="a Transformers checkpoint, builtin:NAME, or a run directory (its export/policy)")
    parser.add_argument("--data", nargs="+", action="extend", help="files, directories, globs, or running-sum:size=256,seed=7")
    parser.add_argument("--recipe", help="take held-out data, reward and rollout settings from a recipe")
    parser.add_argument("-k", "--samples-per-prompt", type=int, help="responses a prompt (default: 1, or as a file repeats it)")
    parser.add_argument("--pass-k", help="the k of pass@k, e.g. 1,4,8 (default: 1, 2, 4, ... and the samples a prompt)")
    parser.add_argument("--temperature", type=float, help="default 1.0, or the recipe's; 0 = greedy")
    parser.add_argument("--max-response-tokens", type=int, help="default 2048, or the recipe's, or what the context leaves")
    parser.add_argument("--limit", type=int, help="first so many prompts of each source")
    parser.add_argument("--seed", type=int, help="default 1, or the recipe's")
    parser.add_argument("--reward", help=f"{', '.join(_REWARDS)}, last-number or package.module:function (default: by the data)")
    parser.add_argument("--workers", type=int, help="rollout engines (default 1)")
    parser.add_argument("--out", type=Path, help="new directory for report and responses (default: runs/eval-MODEL-TIME)")


def config_from_options(options: Namespace, overrides: Sequence[str] = ()) -> EvaluationConfig:
    """The settings of an evaluation. Raises UserError with the remedy for whatever cannot work."""
    tree = _starting_tree(options)
    if options.data:
        tree["data"]["held_out"] = [data_source(text) for text in options.data]
    if not tree["data"].get("held_out"):
        raise UserError("nothing to evaluate on: name files with --data, or a recipe that has data.held_out with --recipe")
    for section, key, value in (
        ("eval", "samples_per_prompt", options.samples_per_prompt),
        ("eval", "pass_k", None if options.pass_k is None else _integers(options.pass_k)),
        ("eval", "prompts", options.limit),
        ("eval", "temperature", options.temperature),
        ("rollout", "max_response_tokens", options.max_response_tokens),
        ("rollout", "workers", options.workers),
    ):
        if value is not None:
            tree[section][key] = value
    if options.seed is not None:
        tree["seed"] = options.seed
    if options.reward is not None:
        tree["reward"]["function"] = reward_function(options.reward)
    elif "function" not in tree["reward"]:
        tree["reward"]["function"] = _reward_of(tree["data"]["held_out"])
    return parse_settings(EvaluationConfig, tree, overrides, "eval settings")


def data_source(text: str) -> dict[str, Any]:
    """One --data value as a source of the settings."""
    kind, _, fields = text.partition(":")
    if kind in _SOURCES and not Path(text).exists():
        source = {"type": kind, **_fields(fields, text)}
        if "size" in _SOURCES[kind].model_fields:
            source.setdefault("size", DEFAULT_SIZE)
        return source
    return {"type": _type_of_path(text), "path": text}


def reward_function(text: str) -> dict[str, Any]:
    """A --reward value as `reward.function`."""
    if text == "last-number":
        return {"type": "custom", "function": LAST_NUMBER}
    if ":" in text:  # whoever types it names the package with it
        return {"type": "custom", "function": text, "packages": [text.partition(":")[0].partition(".")[0]]}
    if text not in _REWARDS or text == "custom":
        known = ", ".join(name for name in _REWARDS if name != "custom")
        raise UserError(f"--reward {text}: no such reward function; there are {known}, last-number, or package.module:function")
    return {"type": text}


def _starting_tree(options: Namespace) -> dict[str, Any]:
    """The recipe's settings; a run directory's own when neither --recipe nor --data is given; else the defaults."""
    run = Path(options.model).expanduser()
    model = str(_exported(run)) if (run / "config.yaml").is_file() else options.model
    if options.recipe is not None:
        return tree_of(load_config(options.recipe)) | {"model": model}
    if not options.data and (run / "config.yaml").is_file():
        return tree_of(load_config(str(run / "config.yaml"))) | {"model": model}
    return {"model": model, "data": {}, "eval": {}, "rollout": {}, "reward": {}}


def _exported(run: Path) -> Path:
    if not (run / EXPORT).is_dir():
        raise UserError(
            f"run directory {run} has no {EXPORT}: let the run finish with checkpoint.export=true (sppo-ray train ... --resume "
            f"--run-dir {run}), or name a checkpoint directory"
        )
    return run / EXPORT


def tree_of(config: RunConfig) -> dict[str, Any]:
    """Those of a run's settings that an evaluation shares with it, as a tree for `parse_settings`."""
    run = config.model_dump(mode="json")
    data = ("held_out", "max_prompt_tokens", "overlong_prompts", "system_prompt", "prompt_suffix")
    sampling = ("samples_per_prompt", "prompts", "temperature")
    return {name: run[name] for name in ("seed", "device", "rollout", "reward", "cluster")} | {
        "data": {name: run["data"][name] for name in data},
        "eval": {name: run["eval"][name] for name in sampling},
    }


def _reward_of(sources: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A task of the package or of reasoning-gym has a verifier of its own; files are mathematics."""
    kinds = {source["type"] for source in sources}
    own = kinds & {"running-sum", "reasoning-gym"}
    if own and len(kinds) > 1:
        raise UserError(
            f"--data of {' and '.join(sorted(kinds))} are judged by different reward functions: evaluate them apart, or name one "
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
            f"--data {text}: neither a .parquet or .jsonl file, nor a directory of them, nor a source: write {_examples()}"
        )
    return kind


def _fields(text: str, whole: str) -> dict[str, Any]:
    fields = {}
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        if not separator:
            raise UserError(f"--data {whole}: {part!r} is no key=value; write e.g. {_examples()}")
        fields[key] = yaml.safe_load(value)
    return fields


def _integers(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"--pass-k {text}: write whole numbers with commas between them, e.g. --pass-k 1,4,8") from None


def _examples() -> str:
    return "running-sum:size=256,seed=7 or reasoning-gym:task=chain_sum"
