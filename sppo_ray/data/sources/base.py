"""Defines sources of examples and their concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sppo_ray.config import SourceSettings
from sppo_ray.types import Example


class Source(Protocol):
    """A finite table of examples. A row gives the same example on every run."""

    name: str  # unique in a list of sources; example ids are "<name>/<row>"
    # made on demand (checked as they are drawn) rather than read from a file (checked when opened)
    procedural: bool

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Example: ...

    def examples(self, rows: Sequence[int]) -> list[Example]:
        """Return the examples of `rows`, in that order. Faster than several `source[row]`."""
        ...


@dataclass(frozen=True, slots=True)
class DataPlugin:
    """A type of data source: the object of an entry point of `sppo_ray.data`.

    `open(settings, name)` opens it on the driver, before an actor starts; it raises UserError for
    what a user can fix.
    """

    settings: type[SourceSettings]
    """With the field `type`, the plugin's name."""
    open: Callable[[Any, str], Source]


Reset = Callable[[Sequence[Example]], list[Example]]
"""Replaces the messages of examples by those with which an environment begins their episodes."""


class ResetSource:
    """A source whose rows have the first messages of an environment."""

    def __init__(self, rows: Source, reset: Reset) -> None:
        self.name, self.procedural = rows.name, rows.procedural
        self._rows = rows
        self._reset = reset

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Example:
        return self._reset([self._rows[row]])[0]

    def examples(self, rows: Sequence[int]) -> list[Example]:
        return self._reset(self._rows.examples(rows))


class Concatenation:
    """Concatenates sources."""

    def __init__(self, name: str, parts: Sequence[Source]) -> None:
        self.name = name
        self.parts = tuple(parts)
        self.procedural = any(part.procedural for part in self.parts)
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in self.parts], dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> Example:
        return self.examples([row])[0]

    def examples(self, rows: Sequence[int]) -> list[Example]:
        """Return the examples of `rows`. Raises IndexError for a row outside [0, len)."""
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"{self.name}: rows run from 0 to {len(self) - 1}")
        part_of = np.searchsorted(self.starts, wanted, side="right") - 1
        found: dict[int, Example] = {}
        for part in np.unique(part_of):
            places = np.flatnonzero(part_of == part)
            local = (wanted[places] - self.starts[part]).tolist()
            found.update(zip(places.tolist(), self.parts[part].examples(local), strict=True))
        return [found[place] for place in range(wanted.size)]
