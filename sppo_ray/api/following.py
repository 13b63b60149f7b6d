"""Following files that others append to: whole lines from a byte position on, in pieces of bounded size.

A position names the file it belongs to by its inode: a resumed run rewrites metrics.jsonl, and a place in the old one means
nothing in the new.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import BinaryIO

from sppo_ray.api.run_files import RunFile, Stamp

CHUNK_BYTES = 64 * 1024
LONGEST_LINE = 4 * 1024 * 1024  # a longer one is skipped


@dataclass(frozen=True, slots=True)
class Position:
    """Just behind a whole line of a file."""

    inode: int = 0  # 0 = the file was not there yet
    offset: int = 0  # bytes

    def __str__(self) -> str:
        return f"{self.inode:x}.{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """The inverse of str; None when it is none."""
        inode, _, offset = text.partition(".")
        try:
            position = cls(int(inode, 16), int(offset))
        except ValueError:
            return None
        is_beginning = position == cls()
        return position if is_beginning or (position.inode > 0 and position.offset >= 0) else None


@dataclass(frozen=True, slots=True)
class Piece:
    """Lines that follow a position, and the position behind each."""

    lines: tuple[tuple[Position, bytes], ...]
    restarted: bool  # the file is another or shorter than it was: what came before is void


def read_lines(source: RunFile, after: Position, *, size: int = CHUNK_BYTES) -> Piece:
    """Whole lines behind `after`, about `size` bytes of them. A line under way is left for later."""
    try:
        with source.open() as file:
            found = os.fstat(file.fileno())
            restarted = after.inode != 0 and (found.st_ino != after.inode or found.st_size < after.offset)
            offset = 0 if restarted else after.offset
            file.seek(offset)
            data = _whole_lines(file.read(size), file)
    except FileNotFoundError:
        return Piece((), restarted=after.offset > 0)
    lines = []
    for line in data.splitlines(keepends=True):
        offset += len(line)
        lines.append((Position(found.st_ino, offset), line.rstrip(b"\n")))
    return Piece(tuple(lines), restarted)


def _whole_lines(data: bytes, file: BinaryIO) -> bytes:
    """`data` up to its last line break; more of the file when there is none in it."""
    while b"\n" not in data and len(data) < LONGEST_LINE:
        more = file.read(CHUNK_BYTES)
        if not more:
            return b""
        data += more
    return data[: data.rfind(b"\n") + 1]


def tail_position(source: RunFile, lines: int) -> Position:
    """Before the last `lines` lines of the file, or of its last LONGEST_LINE bytes."""
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
    """Tells when one of some files changes, by looking at them: also on a shared disk, where nothing else would tell."""

    def __init__(self, *files: RunFile, every_s: float = 0.5) -> None:
        self._files = files
        self._every_s = every_s
        self._seen = self._stamps()

    async def changed(self, timeout_s: float) -> bool:
        """Wait until one changed since the last call; false when none did in time."""
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
