"""Hashes the weights for learner and engines. Imports neither torch nor Ray."""

from __future__ import annotations

import numpy as np
import xxhash


def flat_digest(buffer: np.ndarray) -> str:
    """Return the XXH3-128 hash of `buffer` (any dtype and shape, C-contiguous) as 32 hex digits.

    It detects transport errors (flipped bits, a reused buffer, a partial copy), not manipulation.
    It runs at memory speed and releases the GIL.

    Raises ValueError when `buffer` is not C-contiguous, because hashing a copy would not verify the
    buffer itself.
    """
    if not buffer.flags.c_contiguous:
        raise ValueError("flat_digest needs a C-contiguous buffer")
    return xxhash.xxh3_128_hexdigest(memoryview(buffer.reshape(-1).view(np.uint8)))
