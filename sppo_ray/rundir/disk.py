"""Detect a full disk and raise one error with the remedy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sppo_ray.errors import DiskFull, is_disk_full

# bytes; a failed write of a large file leaves less than one of its blocks free
_NOTHING_LEFT = 2**20


@contextmanager
def full_disk_named(folder: Path, doing: str) -> Iterator[None]:
    """Raise DiskFull for errors in the block that are caused by a full file system of `folder`.

    Errors of torch or DeepSpeed in another process carry no errno, so the free space is checked
    too.
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:  # boundary: torch, DeepSpeed and Ray have no common error for a full disk
        if is_disk_full(error) or _is_full(folder):
            raise DiskFull(
                f"no space left on the disk of {folder} while {doing}: free some, then continue with "
                "--resume; "
                "the checkpoints before it are whole"
            ) from error
        raise


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _NOTHING_LEFT
    except OSError:
        return False
