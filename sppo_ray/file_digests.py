"""Computes size and SHA-256 of the files of a checkpoint, for its manifest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple


class FileDigest(NamedTuple):
    sha256: str
    bytes: int


def digest_file(path: Path, *, durably: bool = False) -> FileDigest:
    """Return size and SHA-256 of a file. `durably`: flush it to disk first. Raises OSError."""
    with path.open("rb") as file:
        if durably:
            os.fsync(file.fileno())
        return FileDigest(hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size)


def digest_folder(folder: Path, *, part: int = 0, parts: int = 1) -> dict[str, FileDigest]:
    """Flush the files below `folder` to disk and return their digests by path in `folder`.

    With `parts`, it processes only part number `part`, so several processes can share the work.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest_file(path, durably=True) for path in files[part::parts]}
