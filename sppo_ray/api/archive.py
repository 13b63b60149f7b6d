"""A folder of a run as a tar archive, made while it is read: no copy on the disk or in memory."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sppo_ray.rundir.files import RunFile

MOST_FILES = 10_000
_PIECE = 1 << 20  # bytes
_BLOCK = 512  # of the format


def file_size(run_dir: Path, name: str) -> int:
    """Return the bytes of a regular file. Raises OSError."""
    with RunFile(run_dir, name).open() as file:
        return os.fstat(file.fileno()).st_size


def tar_of(run_dir: Path, names: Sequence[str], *, below: str, root: str) -> Iterator[bytes]:
    """Yield the archive of the files `names`, e.g. export/policy/config.json, which appear without
    `below` (export/) in the folder `root`. Raises OSError when a file vanishes or shrinks, so that
    a client never takes a torn archive for a whole one.
    """
    for name in names:
        with RunFile(run_dir, name).open() as file:
            found = os.fstat(file.fileno())
            entry = tarfile.TarInfo(f"{root}/{name.removeprefix(below)}")
            entry.size, entry.mtime = found.st_size, int(found.st_mtime)
            yield entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            left = entry.size
            while left:
                piece = file.read(min(left, _PIECE))
                if not piece:
                    raise OSError(f"{name} became shorter while it was sent")
                left -= len(piece)
                yield piece
            yield bytes(-entry.size % _BLOCK)
    yield bytes(2 * _BLOCK)
