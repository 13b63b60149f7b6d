"""A full disk, however it shows itself, as one error that says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sppo_ray.errors import DiskFull, is_disk_full

_NOTHING_LEFT = 2**20  # bytes; what a failed write of a large file leaves free is less than one of its blocks


@contextmanager
def full_disk_named(folder: Path, doing: str) -> Iterator[None]:
    """Raise DiskFull in place of whatever fails in the block because the file system of `folder` is full.

    A rank in another process tells of it in the words of torch or DeepSpeed and not by an errno, so the space that is left
    decides too.
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:  # boundary: torch, DeepSpeed and Ray have no common error for a full disk
        if is_disk_full(error) or _is_full(folder):
            raise DiskFull(
                f"no space left on the disk of {folder} while {doing}: free some, then continue with --resume; "
                "the checkpoints before it are whole"
            ) from error
        raise


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _NOTHING_LEFT
    except OSError:
        return False
