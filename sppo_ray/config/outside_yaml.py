"""Read untrusted YAML: recipes, settings of a run directory, overrides.

Anchors and aliases are refused, because 280 bytes of them can expand to gigabytes. A repeated key
is refused with both lines, because the second would silently replace the first. Size, nesting and
the number of values are bounded.
"""

from __future__ import annotations

from typing import Any

import yaml

from sppo_ray.errors import UserError

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_VALUES = 50_000
MAX_NUMBER = 40  # characters; Python takes quadratic time for a long one
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(text: str | bytes, origin: str) -> Any:
    """Parse `text` into plain values. Raises UserError that begins with `origin` and names the
    line.
    """
    if len(text) > MAX_BYTES:
        raise UserError(
            f"{origin}: is larger than {MAX_BYTES} bytes: settings are a few kilobytes, so shorten the file"
        )
    try:
        _check_events(text, origin)
        return yaml.load(text, Loader=_OneOfEachKey)
    except _Refused as refused:
        raise UserError(f"{origin}: {refused}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{origin}: is not valid YAML: {error}") from None
    except (ValueError, LookupError, OverflowError, RecursionError, AttributeError, TypeError) as error:
        # of PyYAML's constructors
        raise UserError(
            f"{origin}: holds a value that YAML does not have ({type(error).__name__}: {error})"
        ) from None


def write_yaml(tree: Any, *, ascii_only: bool = False) -> str:
    """Write `tree` as text that `read_yaml` accepts: without aliases for repeated lists or
    mappings.
    """
    return yaml.dump(tree, Dumper=_WithoutAliases, sort_keys=False, allow_unicode=not ascii_only)


class _Refused(Exception):
    """Valid YAML that settings do not allow."""


class _WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


class _OneOfEachKey(_Loader):
    """Refuses repeated keys in a mapping, and numbers of thousands of digits."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, (key.tag, str(key.value))
            if name in first:
                raise _Refused(
                    f"{name[1][:80]!r} is on line {first[name]} and again on line {line}: keep one of "
                    "them"
                )
            first[name] = line
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> Any:
        if len(node.value) > MAX_NUMBER:
            raise _Refused(
                f"line {node.start_mark.line + 1}: a number of {len(node.value)} characters: write it in "
                "quotes"
            )
        as_written = (
            yaml.SafeLoader.construct_yaml_int
            if node.tag.endswith(":int")
            else yaml.SafeLoader.construct_yaml_float
        )
        return as_written(self, node)


for _tag in ("int", "float"):
    _OneOfEachKey.add_constructor(f"tag:yaml.org,2002:{_tag}", _OneOfEachKey.construct_number)


def _check_events(text: str | bytes, origin: str) -> None:
    """Check the events without building values, so a refused text costs no memory."""
    depth = values = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.NodeEvent):
            values += 1
            _refuse_anchor(event, origin)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or values > MAX_VALUES:
            what = (
                f"nested more than {MAX_DEPTH} deep"
                if depth > MAX_DEPTH
                else f"more than {MAX_VALUES} values"
            )
            raise UserError(
                f"{origin}: line {event.start_mark.line + 1}: {what}: no settings are, so shorten it"
            )


def _refuse_anchor(event: Any, origin: str) -> None:
    if event.anchor is not None:
        kind, mark = ("alias", "*") if isinstance(event, yaml.AliasEvent) else ("anchor", "&")
        raise UserError(
            f"{origin}: line {event.start_mark.line + 1}: the {kind} {mark}{event.anchor[:80]}: anchors and "
            "aliases are not "
            "read; write the value out wherever it is meant"
        )
