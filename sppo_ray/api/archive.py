"""A folder of a run as a tar archive, made while it is read: no copy on the disk or in memory."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sppo_ray.rundir.files import RunFile

MOST_FILES = 10_000
_PIECE = 1 << 20  # bytes
_BLOCK = 512  # of the format
_END = bytes(2 * _BLOCK)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in the archive."""

    file: RunFile
    size: int  # bytes
    header: bytes

    @property
    def archived(self) -> int:
        """Bytes in the archive: header, content, zeros up to a whole block."""
        return len(self.header) + self.size + -self.size % _BLOCK


def entries_of(run_dir: Path, names: Sequence[str], *, below: str, root: str) -> list[Entry]:
    """Return the files `names`, e.g. export/policy/config.json, which appear without `below`
    (export/) in the folder `root`. Raises OSError.
    """
    found = []
    for name in names:
        file = RunFile(run_dir, name)
        with file.open() as opened:
            stat = os.fstat(opened.fileno())
        info = tarfile.TarInfo(f"{root}/{name.removeprefix(below)}")
        info.size, info.mtime = stat.st_size, int(stat.st_mtime)
        header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        found.append(Entry(file, stat.st_size, header))
    return found


def archived_size(entries: Sequence[Entry]) -> int:
    """Return the bytes of the archive."""
    return sum(entry.archived for entry in entries) + len(_END)


def tar_of(entries: Sequence[Entry]) -> Iterator[bytes]:
    """Yield the archive. Raises OSError when a file has vanished or became shorter."""
    for entry in entries:
        yield entry.header
        with entry.file.open() as opened:
            left = entry.size
            while left:
                piece = opened.read(min(left, _PIECE))
                if not piece:
                    raise OSError(f"{entry.file.name} became shorter while it was sent")
                left -= len(piece)
                yield piece
        yield bytes(-entry.size % _BLOCK)
    yield _END
