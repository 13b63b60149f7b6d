"""Read files of a run directory with a size limit and without following links.

A link placed in a run must not make the server read files elsewhere.

Links above the run directory are followed: the directory of runs may be a link.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from sppo_ray.rundir.jsonlines import parse_object

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# a FIFO would block the reader until someone writes
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

SMALL_FILE = 1 << 20  # bytes; status.json of a thousand engines is a quarter of that
Stamp = tuple[int, int, int]  # inode, time in ns, size; changes whenever the file does
NO_FILE: Stamp = (0, 0, -1)


@dataclass(frozen=True, slots=True)
class RunFile:
    """`name`, e.g. control/inbox/1-a.json, below a run directory. A link or a non-regular file
    counts as missing.
    """

    run_dir: Path
    name: str

    def open(self) -> BinaryIO:
        """Open for reading. Raises OSError, mostly FileNotFoundError."""
        folder, _, name = self.name.rpartition("/")
        with _opened_folder(self.run_dir, folder) as parent:
            descriptor = _open(name, _FILE, parent)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "no regular file", self.name)
        return os.fdopen(descriptor, "rb")

    def read(self, most: int = SMALL_FILE) -> bytes:
        """Read the file. Raises OSError: mostly FileNotFoundError, and EFBIG for a file of more
        than `most` bytes, including holes.
        """
        with self.open() as file:
            is_small = os.fstat(file.fileno()).st_size <= most
            data = file.read(most + 1) if is_small else b""  # it may grow during the read
        if not is_small or len(data) > most:
            raise OSError(errno.EFBIG, f"larger than {most} bytes", self.name)
        return data

    def stamp(self) -> Stamp:
        """Return the stamp, or NO_FILE. A folder's stamp changes whenever an entry is added or
        removed.
        """
        try:
            found = os.stat(self.run_dir / self.name, follow_symlinks=False)
        except OSError:
            return NO_FILE
        if stat.S_ISLNK(found.st_mode):
            return NO_FILE
        return found.st_ino, found.st_mtime_ns, 0 if stat.S_ISDIR(found.st_mode) else found.st_size


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _of_64_bits(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise ValueError("a whole number of at most 64 bits")
    return value


Number = Annotated[float | None, AfterValidator(_finite_or_none)]
"""None for NaN and infinity, as in the file: JSON has neither."""
Whole = Annotated[int, AfterValidator(_of_64_bits)]


class FileModel(BaseModel):
    """Content of a small JSON file. Unknown keys are ignored, because another release may have
    written them.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        from_attributes=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @classmethod
    def read(cls, file: RunFile) -> Self | None:
        """Read the file; None when it is missing or damaged."""
        try:
            return cls.load(file)
        except (OSError, ValueError):
            return None

    @classmethod
    def load(cls, file: RunFile) -> Self:
        """Read the file. Raises OSError when it is missing or too large, ValueError when it is
        damaged.
        """
        try:
            return cls.model_validate_json(file.read())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def json_object(file: RunFile, most: int = SMALL_FILE) -> dict[str, Any]:
    """Read a JSON object; empty when the file is unreadable or larger than `most` bytes."""
    try:
        return parse_object(file.read(most)) or {}
    except OSError:
        return {}


def whole_lines(file: BinaryIO, *, longest: int, most: int) -> Iterator[bytes]:
    """Yield the lines of a file's first `most` bytes, without lines of more than `longest` bytes
    and without an incomplete last line.
    """
    is_inside = False  # a skipped line
    while most > 0 and (line := file.readline(longest)):
        most -= len(line)
        is_whole = line.endswith(b"\n")
        if is_whole and not is_inside:
            yield line
        is_inside = not is_whole


def names_in(run_dir: Path, folder: str) -> list[str]:
    """Return the sorted names in a folder of the run directory; empty when it is missing or a
    link.
    """
    try:
        with _opened_folder(run_dir, folder) as descriptor:
            return sorted(os.listdir(descriptor))
    except OSError:
        return []


def files_below(run_dir: Path, folder: str, *, most: int, depth: int = 4) -> list[str]:
    """Return the sorted paths of the regular files below a folder of the run directory, at most
    `most`, from at most `depth` levels of folders. Links are left out.
    """
    found: list[str] = []
    for name in names_in(run_dir, folder)[:most]:
        path = f"{folder}/{name}"
        if is_folder(run_dir, path):
            found += files_below(run_dir, path, most=most - len(found), depth=depth - 1) if depth > 1 else []
        elif is_file(run_dir, path):
            found.append(path)
    return found[:most]


def is_folder(run_dir: Path, name: str) -> bool:
    try:
        with _opened_folder(run_dir, name):
            return True
    except OSError:
        return False


def is_file(run_dir: Path, name: str) -> bool:
    """Whether `name` is a regular file that can be read."""
    try:
        RunFile(run_dir, name).open().close()
    except OSError:
        return False
    return True


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
        if error.errno in (errno.ELOOP, errno.ENOTDIR):  # a link where none is allowed
            raise FileNotFoundError(errno.ENOENT, "a link, or no folder", name) from None
        raise
