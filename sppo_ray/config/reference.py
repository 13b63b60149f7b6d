"""The reference page of the settings: every key with its type, default and docstring in
`sppo_ray.config`.

`sppo-ray settings` prints it. docs/settings.md is the same text; a test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sppo_ray.config import RunConfig
from sppo_ray.config.devices import DEFAULTS, ByDevice
from sppo_ray.config.loading import models_in
from sppo_ray.errors import UserError

HEADER = """# Settings

Every setting of a recipe, from `sppo_ray/config/`. `sppo-ray settings` prints this page, and `sppo-ray settings lora` those
with this word in their name. On the command line a key is written `--section.key=value`, as in `--rollout.workers=2`; an entry
of a list goes by its number, as in `--data.train.0.path=FILE`. Batch sizes are in samples over all ranks; times are in seconds.
"""  # noqa: E501


def reference() -> str:
    """Return the whole page as Markdown."""
    return HEADER + "\n" + "\n".join(_section("", RunConfig, {})) + "\n"


def named(word: str) -> str:
    """Return what the page says of the sections, types and settings with `word` in their name.

    Raises:
        UserError: when there is none.
    """
    found: list[str] = []
    for section in reference().split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        lines = text.strip().split("\n")
        if not _is_in(word, heading):
            lines = [line for line in lines if line.startswith("- ") and _is_in(word, heading, line)]
        if lines:
            found += [f"## {heading}", "", *lines, ""]
    if not found:
        raise UserError(f"no setting has {word!r} in its name; `sppo-ray settings` prints all of them")
    return "\n".join(found)


def _is_in(word: str, heading: str, entry: str = "") -> bool:
    """Whether a section, or a setting of it, has the word in its name, with and without types."""
    name = f".{entry.split('`')[1]}" if entry else ""
    return any(word in re.sub(r" \(type: (.*?)\)", as_, heading) + name for as_ in (r".\1", ""))


def _section(path: str, model: type[BaseModel], shown: dict[type[BaseModel], str]) -> Iterator[str]:
    """Write one section. `shown` maps a described model to its section, so that later uses refer to
    it.
    """
    yield f"## {path or 'top level'}"
    if model in shown:
        yield from ["", f"As {shown[model]}.", ""]
        return
    shown[model] = path
    yield ""
    if path and model.__doc__:
        yield from [_one_line(model.__doc__), ""]
    plain = {name: field for name, field in model.model_fields.items() if not models_in(field.annotation)}
    nested = {name: field for name, field in model.model_fields.items() if models_in(field.annotation)}
    for name, field in plain.items():
        yield _entry(name, field)
    yield ""
    for name, field in nested.items():
        members = models_in(field.annotation)
        if len(members) > 1 and all(member in shown for member in members):
            yield from [f"## {path}.{name}", "", _as_before(members, shown), ""]
            continue
        for member in members:
            tag = member.model_fields["type"].default if "type" in member.model_fields else None
            yield from _section(
                f"{path}.{name}".lstrip(".") + (f" (type: {tag})" if tag else ""), member, shown
            )


def _as_before(members: Sequence[type[BaseModel]], shown: Mapping[type[BaseModel], str]) -> str:
    """Refer to the section of a union whose members are described."""
    *types, last = (member.model_fields["type"].default for member in members)
    return f"As {shown[members[0]].partition(' (type')[0]}: type {', '.join(types)} or {last}."


def _entry(name: str, field: FieldInfo) -> str:
    default = (
        "required"
        if field.is_required()
        else f"default `{_shown(field.get_default(call_default_factory=True))}`"
    )
    if ByDevice in field.metadata:
        values = DEFAULTS[name].items()
        default += " = " + ", ".join(f"`{_shown(value)}` on {device}" for device, value in values)
    text = f": {_one_line(field.description)}" if field.description else ""
    return f"- `{name}` ({_kind(field)}; {default}){text}"


def _kind(field: FieldInfo) -> str:
    annotation = field.annotation
    arguments = get_args(annotation)
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return " or ".join(arguments)
    if get_origin(annotation) is tuple:
        return "list"
    return " or ".join(_name(argument) for argument in arguments or (annotation,))


def _name(argument: Any) -> str:
    if get_origin(argument) is Literal:
        return " or ".join(map(str, get_args(argument)))
    name = getattr(_bare(argument), "__name__", str(argument))
    return {"NoneType": "null", "tuple": "list"}.get(name, name)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())
