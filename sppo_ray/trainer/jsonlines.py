"""Append-only JSON Lines that survive a crash, and JSON without NaN.

A line is written whole and flushed, so that a killed process loses at most the line it was writing; opening the file
again drops such a torn tail.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sppo_ray.errors import UserError

TEMPORARY = ".tmp"  # ending of a file that is being written


class JsonLines:
    """One writer's handle on a file of JSON objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_tail(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line. Raises ValueError on NaN or infinity (use `finite_json`) and OSError on a full disk."""
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def flush_durably(self) -> None:
        """Return when every line is on the disk: `append` alone survives the end of the process, not of the machine."""
        os.fsync(self._file.fileno())

    def keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> int:
        """Rewrite the file with the wanted rows only, atomically. Returns the number of rows dropped."""
        self._file.close()
        rows = list(read_json_lines(self.path))
        kept = [row for row in rows if wanted(row)]
        if len(kept) < len(rows):
            write_atomically(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        return len(rows) - len(kept)

    def close(self) -> None:
        self._file.close()


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file that may still be written: a torn last line is left out, a missing file has no rows.

    Raises UserError naming file and line when an inner line is not JSON.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: not a JSON line ({error}): remove or repair it") from None


def finite_json(node: Any) -> Any:
    """`node` with tuples as lists, keys as strings and non-finite floats as null: what every JSON reader accepts."""
    if isinstance(node, Mapping):
        return {str(key): finite_json(child) for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        return [finite_json(child) for child in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def write_atomically(path: Path, content: str | bytes, *, durably: bool = True) -> None:
    """Replace `path` in one step: a reader or a crash sees the old content or the new, never a part.

    Without `durably` a power failure may cost the content; for what is written again in a moment, and often.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durably:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if not durably:
        return
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself is durable only then
    finally:
        os.close(directory)


def _drop_torn_tail(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
