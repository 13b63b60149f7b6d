"""Append-only JSON Lines that survive a crash, and JSON without NaN.

Each line is flushed, so a killed process loses at most its last line. Opening the file again
removes an incomplete last line.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sppo_ray.errors import UserError

TEMPORARY = ".tmp"  # suffix of a file that is being written


class JsonLines:
    """One writer's handle on a file of JSON objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_tail(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line. Raises ValueError on NaN or infinity (use `finite_json`) and OSError on a
        full disk.
        """
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def flush_durably(self) -> None:
        """Return when every line is on the disk: lines of `append` survive the end of the process,
        but not of the machine.
        """
        os.fsync(self._file.fileno())

    def keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> int:
        """Keep only the wanted rows, atomically. Returns the number of rows dropped."""
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
    """Read the rows of a file that may still be written, without an incomplete last line; a missing
    file has no rows.

    Raises UserError naming file and line when another line is not JSON.
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


def parse_object(data: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None for anything else and for very deep nesting."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def finite_json(node: Any) -> Any:
    """Convert `node` to portable JSON: tuples become lists, keys strings, non-finite floats
    null.
    """
    if isinstance(node, Mapping):
        return {str(key): finite_json(child) for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        return [finite_json(child) for child in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def write_atomically(path: Path, content: str | bytes, *, durably: bool = True) -> None:
    """Replace `path` atomically: a reader or a crash sees the old content or the new. Without
    `durably` a power failure may lose the content; meant for files that are rewritten often.
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
        os.fsync(directory)  # makes the rename durable
    finally:
        os.close(directory)


def drop_torn_tail(path: Path) -> None:
    """Remove an incomplete last line."""
    if not path.exists():
        return
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
