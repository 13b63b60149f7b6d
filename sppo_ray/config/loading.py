"""Parse recipes and `--section.key=value` overrides; errors name the field and the nearest valid
key.

Like the tree itself (`sppo_ray.config`) this imports neither torch nor Ray.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from sppo_ray.config import RewardSettings, RunConfig
from sppo_ray.config.outside_yaml import MAX_BYTES, read_yaml, write_yaml
from sppo_ray.errors import UserError
from sppo_ray.redaction import secret_places

SHOWN = 200  # characters of a value that a message repeats
AnySettings = TypeVar("AnySettings", bound=BaseModel)


def recipe_names() -> list[str]:
    folder = resources.files("sppo_ray") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_config(recipe: str, overrides: Sequence[str] = (), *, sha256: str | None = None) -> RunConfig:
    """Read a recipe (a name that ships with the package, or a YAML file) and apply `a.b=c`
    overrides.

    Raises UserError naming the file and the field, also when the file does not match a given
    `sha256`.
    """
    origin, tree = recipe_tree(recipe, sha256=sha256)
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, origin, overridden=[_key(override) for override in overrides])


def recipe_tree(recipe: str, *, sha256: str | None = None) -> tuple[str, dict[str, Any]]:
    """Return (name for messages, settings as written) of a recipe, given by name or file; a recipe
    without a name is called after its file. Raises UserError naming the file.
    """
    origin, text = _recipe_text(recipe)
    if sha256 is not None and hashlib.sha256(text).hexdigest() != sha256:
        raise UserError(f"{origin}: was changed after it was checked (--config-sha256): submit the job again")
    return origin, {"name": Path(recipe).stem, **read_settings(text, origin)}


def read_settings(text: bytes, origin: str) -> dict[str, Any]:
    """Read a settings tree as written. Raises UserError."""
    tree = read_yaml(text, origin)
    if not isinstance(tree, dict):
        raise UserError(
            f"{origin}: a recipe is a mapping of sections (data, learner, critic, ...), found "
            f"{type(tree).__name__}"
        )
    return tree


def parse_reward_settings(overrides: Sequence[str] = ()) -> RewardSettings:
    """Parse only the `reward` section, e.g. from ["--reward.function.type=running-sum"]; the
    verifier is math by default.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        _apply_override(tree, override)
    foreign = sorted(tree.keys() - {"reward"})
    if foreign:
        raise UserError(f"{foreign[0]}: only reward settings apply here, e.g. --reward.deadline_s=5")
    try:
        return RewardSettings.model_validate(tree.get("reward", {}))
    except ValidationError as error:
        raise UserError(
            "\n".join(_explain({**item, "loc": ("reward", *item["loc"])}) for item in error.errors())
        ) from None


def parse_config(
    tree: Mapping[str, Any], origin: str = "config", *, overridden: Sequence[str] = ()
) -> RunConfig:
    """Check a settings tree. Raises UserError naming each wrong field, also one that contains a
    secret, because settings are written into every run directory. A message names `origin`, or the
    option where the setting is one of `overridden`.
    """
    _refuse_secrets(tree, origin)  # before a message may repeat a value
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain_all(error, origin, overridden)) from None
    return config


def _explain_all(error: ValidationError, origin: str, overridden: Sequence[str]) -> str:
    """Return one line a mistake: those of the recipe first, then those of options, as --a.b."""
    by_option = [item for item in error.errors() if any(_is_at(item["loc"], key) for key in overridden)]
    in_recipe = [item for item in error.errors() if item not in by_option]
    lines = [f"--{_explain(item)}" for item in by_option]
    if in_recipe:
        lines.insert(0, f"{origin}: " + "\n".join(_explain(item) for item in in_recipe))
    return "\n".join(lines)


def _is_at(location: Sequence[Any], key: str) -> bool:
    """Whether a setting's location, which has the tags of its unions too, is at or below `key`, or
    is the unknown section of `key`: ("lop",) of lop.steps.
    """
    first, *rest = key.split(".")
    parts = iter(map(str, location))
    is_section = len(location) == 1 and first not in RunConfig.model_fields
    return next(parts, None) == first and (is_section or all(part in parts for part in rest))


def _refuse_secrets(tree: Mapping[str, Any], origin: str) -> None:
    for name in secret_places(tree, ""):
        raise UserError(
            f"{origin}: {name.removeprefix('.')}: holds a secret, and settings are kept in the run "
            "directory: give it in the "
            "environment, e.g. as HF_TOKEN, or in a file that only you can read"
        )


def parse_settings(
    model: type[AnySettings], tree: dict[str, Any], overrides: Sequence[str], origin: str
) -> AnySettings:
    """Parse a settings tree other than a run's: `tree` with `a.b=c` overrides applied. Raises
    UserError naming the field.
    """
    for override in overrides:
        _apply_override(tree, override)
    _refuse_secrets(tree, origin)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}: " + "\n".join(_explain(item, model) for item in error.errors())) from None


def dump_config(config: BaseModel) -> str:
    return write_yaml(config.model_dump(mode="json"))


def _recipe_text(recipe: str) -> tuple[str, bytes]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{recipe}: no such recipe file; recipes that ship: {', '.join(recipe_names())}")
        try:
            with path.open("rb") as file:
                text = file.read(MAX_BYTES + 1)
            if len(text) <= MAX_BYTES:  # a longer one is refused as such
                text.decode()
            return recipe, text
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{recipe}: cannot be read as UTF-8 text ({error}): a recipe is a YAML file"
            ) from None
    names = recipe_names()
    if recipe not in names:
        close = difflib.get_close_matches(recipe, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(
            f"unknown recipe {recipe!r}{hint} (recipes that ship: {', '.join(names)}; or give a .yaml file)"
        )
    return recipe, (resources.files("sppo_ray") / "recipes" / f"{recipe}.yaml").read_bytes()


def _key(override: str) -> str:
    return override.removeprefix("--").partition("=")[0]


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.removeprefix("--").partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r}: write it as --section.key=value, e.g. --rollout.workers=2")
    value = read_yaml(text, f"override --{key}")
    set_setting(tree, key, _number_or_text(value) if isinstance(value, str) else value)


def set_setting(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set `key`, a path such as data.train.0.seed, in a settings tree. Raises UserError where the
    tree has no such place.
    """
    node: Any = tree
    *parents, leaf = key.split(".")
    for part in parents:
        node = _descend(node, part, key)
    if isinstance(node, list):
        node[_list_index(node, leaf, key)] = value
    else:
        node[leaf] = value


def _number_or_text(text: str) -> float | str:
    # YAML 1.1 reads 1e-5 (no dot) as a string; here it is a number.
    try:
        return float(text)
    except ValueError:
        return text


def _descend(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_list_index(node, part, key)]
    child = node.setdefault(part, {})
    if child is None:
        child = node[part] = {}
    if not isinstance(child, (dict, list)):
        raise UserError(f"override --{key}: {part} is a value, not a section")
    return child


def _list_index(node: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(
            f"override --{key}: {part!r} is not an index of a list of {len(node)} entries (0 to "
            f"{len(node) - 1})"
        )
    return int(part)


def _explain(item: Mapping[str, Any], root: type[BaseModel] = RunConfig) -> str:
    where = _written(item["loc"], root)
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        return f"{where}: unknown setting; {_hint(parents, str(key), root)}"
    if item["type"] == "union_tag_invalid":
        given, tags = item["ctx"]["tag"], [tag.strip(" '") for tag in item["ctx"]["expected_tags"].split(",")]
        close = difflib.get_close_matches(given, tags, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{where}.type: there is no {given!r}; {hint}Known: {', '.join(tags)}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] in ("model_type", "model_attributes_type"):
        models = _models_at(item["loc"], root)
        keys = ["type"] if len(models) > 1 else [key for model in models for key in model.model_fields]
        message = "is a section, not a single value: set its keys" + "".join(
            f", e.g. {where}.{key}" for key in keys[:1]
        )
    given = item.get("input")
    shown = f" (given: {_short(given)})" if isinstance(given, (str, int, float, bool, type(None))) else ""
    return f"{where}: {message}{shown}" if where else message


def _written(location: Sequence[Any], root: type[BaseModel]) -> str:
    """Return a setting's path as a user writes it: without the tags of its unions."""
    parts = []
    for end, part in enumerate(location):
        models = _models_at(location[:end], root)
        if len(models) == 1 or not any(_tag(model) == part for model in models):
            parts.append(str(part))
    return ".".join(parts)


def _short(given: Any) -> str:
    text = repr(given[:SHOWN] if isinstance(given, str) else given)
    return text if len(text) <= SHOWN + 2 else f"{text[:SHOWN]}..."


_NAMES_ELSEWHERE = {
    "learning_rate": "lr",
    "batch_size": "prompts_per_step",
    "mini_batch_size": "minibatch_size",
    "num_generations": "samples_per_prompt",
    "max_completion_length": "max_response_tokens",
    "max_tokens": "max_response_tokens",
    "model_name_or_path": "model",
    "max_steps": "steps",
}
"""What other systems call a setting; docs/coming-from.md has them all."""


def _hint(location: Sequence[Any], key: str, root: type[BaseModel]) -> str:
    """Suggest the nearest valid key, or the types of a tagged union that have it, or all valid
    keys.
    """
    models = _models_at(location, root)
    valid = sorted({name for model in models for name in model.model_fields})
    close = difflib.get_close_matches(_NAMES_ELSEWHERE.get(key, key), valid, n=1)
    if close:
        return f"did you mean {close[0]}?"
    chosen = [
        tag for model in models if (tag := _tag(model)) is not None and location and location[-1] == tag
    ]
    others = _models_at(location[:-1], root) if chosen else []
    owners = [str(_tag(model)) for model in others if key in model.model_fields]
    if owners:
        return f"{chosen[0]} has none, it belongs to type {' and '.join(owners)}"
    return f"valid here: {', '.join(valid)}"


def _models_at(location: Sequence[Any], root: type[BaseModel]) -> list[type[BaseModel]]:
    """Return the settings models at a location below `root`; tags select union members."""
    models: list[type[BaseModel]] = [root]
    for part in location:
        if isinstance(part, int):
            continue
        tagged = [model for model in models if _tag(model) == part]
        found = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        models = tagged or [model for annotation in found[:1] for model in models_in(annotation)]
    return models


def _tag(model: type[BaseModel]) -> str | None:
    return model.model_fields["type"].default if "type" in model.model_fields else None


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings models in an annotation, union members in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in get_args(annotation) for m in models_in(arg)]
