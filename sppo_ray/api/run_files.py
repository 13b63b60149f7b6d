"""Files of a run directory, opened without following a link: who writes a run must not make the server read what lies elsewhere.

Above the run directory links are as good as anything: the directory of runs may be one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO would hold the reader until somebody writes

Stamp = tuple[int, int, int]  # inode, time in ns, size; changes whenever the file does
NO_FILE: Stamp = (0, 0, -1)


@dataclass(frozen=True, slots=True)
class RunFile:
    """`name`, e.g. control/inbox/1-a.json, below a run directory. A link, or what is no regular file, counts as not there."""

    run_dir: Path
    name: str

    def open(self) -> BinaryIO:
        """For reading. Raises OSError, mostly FileNotFoundError."""
        folder, _, name = self.name.rpartition("/")
        with _opened_folder(self.run_dir, folder) as parent:
            descriptor = _open(name, _FILE, parent)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "no regular file", self.name)
        return os.fdopen(descriptor, "rb")

    def read(self) -> bytes:
        """Raises OSError, mostly FileNotFoundError."""
        with self.open() as file:
            return file.read()

    def stamp(self) -> Stamp:
        """NO_FILE where there is none. Of a folder it changes whenever an entry comes or goes."""
        try:
            found = os.stat(self.run_dir / self.name, follow_symlinks=False)
        except OSError:
            return NO_FILE
        if stat.S_ISLNK(found.st_mode):
            return NO_FILE
        return found.st_ino, found.st_mtime_ns, 0 if stat.S_ISDIR(found.st_mode) else found.st_size


def names_in(run_dir: Path, folder: str) -> list[str]:
    """What lies in a folder of the run directory, sorted; nothing when there is none, or it is a link."""
    try:
        with _opened_folder(run_dir, folder) as descriptor:
            return sorted(os.listdir(descriptor))
    except OSError:
        return []


@contextmanager
def _opened_folder(run_dir: Path, folder: str) -> Iterator[int]:
    descriptor = _open(str(run_dir), _FOLDER, None)
    try:
        for part in folder.split("/") if folder else ():
            above, descriptor = descriptor, _open(part, _FOLDER, descriptor)
            os.close(above)
        yield descriptor
    finally:
        os.close(descriptor)


def _open(name: str, flags: int, folder: int | None) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):  # a link where none may be
            raise FileNotFoundError(errno.ENOENT, "a link, or no folder", name) from None
        raise
