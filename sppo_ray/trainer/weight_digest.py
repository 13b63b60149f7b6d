"""One hash of a version's bytes, the same in the learner and in every engine. Depends on neither torch nor Ray."""

from __future__ import annotations

import numpy as np
import xxhash


def flat_digest(buffer: np.ndarray) -> str:
    """XXH3-128 of all bytes of `buffer` (any dtype and shape, C-contiguous) as 32 hex digits.

    It guards against accidents of transport (flipped bits, a reused buffer, a torn copy), not against an adversary;
    it runs at memory speed and releases the GIL.

    Raises ValueError when `buffer` is not C-contiguous: hashing a copy would not prove what the buffer holds.
    """
    if not buffer.flags.c_contiguous:
        raise ValueError("flat_digest needs a C-contiguous buffer")
    return xxhash.xxh3_128_hexdigest(memoryview(buffer.reshape(-1).view(np.uint8)))
