"""Follow files that other processes append to: whole lines after a byte position, in pieces of
bounded size.

A position includes the file's inode, because a resumed run rewrites metrics.jsonl and old positions
are invalid in the new file.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import BinaryIO

from sppo_ray.rundir.files import RunFile, Stamp

CHUNK_BYTES = 64 * 1024
LONGEST_LINE = 1024 * 1024  # a longer one is skipped


@dataclass(frozen=True, slots=True)
class Position:
    """A position after a whole line of a file."""

    inode: int = 0  # 0 = the file was not there yet
    offset: int = 0  # bytes

    def __str__(self) -> str:
        return f"{self.inode:x}.{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """Parse the text of a position; None when it is invalid."""
        inode, _, offset = text.partition(".")
        try:
            position = cls(int(inode, 16), int(offset))
        except ValueError:
            return None
        is_beginning = position == cls()
        return position if is_beginning or (position.inode > 0 and position.offset >= 0) else None


@dataclass(frozen=True, slots=True)
class Piece:
    """Lines after a position, with the position after each."""

    lines: tuple[tuple[Position, bytes], ...]
    restarted: bool  # the file was replaced or truncated: earlier lines are void


def read_lines(source: RunFile, after: Position, *, size: int = CHUNK_BYTES) -> Piece:
    """Read about `size` bytes of whole lines after `after`. An incomplete line is left for
    later.
    """
    try:
        with source.open() as file:
            found = os.fstat(file.fileno())
            restarted = after.inode != 0 and (found.st_ino != after.inode or found.st_size < after.offset)
            offset = 0 if restarted else after.offset
            file.seek(offset)
            data = _whole_lines(file.read(size), file)
            skipped = LONGEST_LINE if not data and found.st_size - offset > LONGEST_LINE else 0
    except FileNotFoundError:
        return Piece((), restarted=after.offset > 0)
    # An overlong line: each piece of it counts as an empty line.
    lines = [(Position(found.st_ino, offset + skipped), b"")] if skipped else []
    for line in data.splitlines(keepends=True):
        offset += len(line)
        lines.append((Position(found.st_ino, offset), line.rstrip(b"\n")))
    return Piece(tuple(lines), restarted)


def _whole_lines(data: bytes, file: BinaryIO) -> bytes:
    """Return `data` up to its last line break; read more of the file when it has none."""
    while b"\n" not in data and len(data) < LONGEST_LINE:
        more = file.read(CHUNK_BYTES)
        if not more:
            return b""
        data += more
    return data[: data.rfind(b"\n") + 1]


def unfinished_line(source: RunFile, after: Position) -> bytes:
    """Return at most CHUNK_BYTES after the last whole line."""
    try:
        with source.open() as file:
            file.seek(after.offset)
            return file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return b""


def tail_position(source: RunFile, lines: int) -> Position:
    """Return the position before the last `lines` lines, within the last LONGEST_LINE bytes."""
    try:
        with source.open() as file:
            found = os.fstat(file.fileno())
            start = max(0, found.st_size - LONGEST_LINE)
            file.seek(start)
            data = file.read(LONGEST_LINE)
    except FileNotFoundError:
        return Position()
    end = len(data)
    if lines == 0:
        return Position(found.st_ino, start + end)
    place = end - 1 if data.endswith(b"\n") else end
    for _ in range(lines):
        place = data.rfind(b"\n", 0, max(place, 0))
        if place < 0:
            break
    return Position(found.st_ino, start + place + 1 if place >= 0 else start)


class Watch:
    """Detects changes of files by polling, which also works on a shared disk."""

    def __init__(self, *files: RunFile, every_s: float = 0.5) -> None:
        self._files = files
        self._every_s = every_s
        self._seen = self._stamps()

    async def changed(self, timeout_s: float) -> bool:
        """Wait for a change since the last call; false when none happens in time."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            now = await asyncio.to_thread(self._stamps)
            if now != self._seen:
                self._seen = now
                return True
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(self._every_s)

    def _stamps(self) -> tuple[Stamp, ...]:
        return tuple(file.stamp() for file in self._files)
