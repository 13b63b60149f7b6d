"""Algorithms, data sources, rewards and trackers of other packages, by entry point.

    [project.entry-points."sppo_ray.algorithms"]
    my-algorithm = "my_package.algorithm:SPEC"

The name is what a setting's `type` says. Only the entry point that a setting names is loaded. An
object that `register` was given counts before an entry point of the same name, in this process.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from sppo_ray.errors import UserError

Kind = Literal["algorithms", "rewards", "data", "trackers"]
_registered: dict[tuple[str, str], Any] = {}


def group_of(kind: Kind) -> str:
    """Return the group of entry points, e.g. sppo_ray.rewards."""
    return f"sppo_ray.{kind}"


def register(kind: Kind, name: str, made: Any) -> None:
    """Let settings of this process name an object."""
    _registered[kind, name] = made


def names(kind: Kind) -> list[str]:
    """Return the names that settings may use beside those of this package. Imports nothing."""
    found = {entry.name for entry in entry_points(group=group_of(kind))}
    return sorted(found | {name for of, name in _registered if of == kind})


def load(kind: Kind, name: str) -> Any:
    """Return the object. Raises UserError when there is none, or its package cannot be imported."""
    if (kind, name) in _registered:
        return _registered[kind, name]
    entry = _entry_point(kind, name)
    try:
        return entry.load()
    except Exception as error:  # boundary: another package's code, whose import may raise anything
        raise UserError(
            f"{name!r}, the entry point {entry.value} of the group {group_of(kind)}, cannot be loaded "
            f"({type(error).__name__}: {error}): install its package again"
        ) from None


def _entry_point(kind: Kind, name: str) -> EntryPoint:
    found = {entry.value: entry for entry in entry_points(group=group_of(kind), name=name)}
    if not found:
        raise UserError(
            f"there is no {name!r} in the entry points {group_of(kind)}: install its package on every node"
        )
    if len(found) > 1:
        raise UserError(
            f"{name!r} is in the entry points {group_of(kind)} more than once ({', '.join(sorted(found))}): "
            "uninstall one of the packages"
        )
    return next(iter(found.values()))
