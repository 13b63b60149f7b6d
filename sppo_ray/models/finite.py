"""Finds weights that are not finite in safetensors files, without torch.

Format: 8 bytes with the length of a JSON header of {name: {"dtype", "shape", "data_offsets"}}, the
header, then the tensors. Source: the description in the safetensors repository.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import numpy as np

from sppo_ray.errors import UserError

_EXPONENTS = {  # integer type of the width, and the mask of the exponent, all ones in NaN and infinity
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}


def require_finite_files(directory: Path, largest: int) -> None:
    """Check a checkpoint of at most `largest` bytes; a larger one is checked when the ranks load
    it. Raises UserError naming the tensor. `check_checkpoint` has checked the files' headers.
    """
    files = sorted(directory.glob("*.safetensors"))
    if sum(file.stat().st_size for file in files) > largest:
        return
    for path in files:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = 8 + int.from_bytes(data[:8], "little")
            for name, entry in json.loads(data[8:start]).items():
                if name != "__metadata__" and entry["dtype"] in _EXPONENTS:
                    kind, mask = _EXPONENTS[entry["dtype"]]
                    begin, end = (start + offset for offset in entry["data_offsets"])
                    # the file may be unaligned, hence the copy
                    bits = np.frombuffer(data[begin:end], dtype=kind)
                    bad = int(np.count_nonzero((bits & mask) == mask))
                    if bad:
                        raise not_finite(directory, name, bad, bits.size)


def not_finite(directory: Path | str, name: str, bad: int, total: int) -> UserError:
    """The error for a tensor with NaN or infinite values."""
    return UserError(
        f"model {directory}: {bad} of {total} values of {name} are not finite: the checkpoint is of a run "
        "that diverged, or damaged; use an earlier one"
    )
