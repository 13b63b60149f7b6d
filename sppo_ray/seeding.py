"""Seeds derived from the purpose of a random number, independent of the process and the time."""

from __future__ import annotations

import hashlib


def derive_seed(*purpose: int | str) -> int:
    """Return a seed in [0, 2**63) for a purpose, e.g. `derive_seed(run_seed, "rollout", step)`.

    Equal purposes give equal seeds in every process. Different purposes give independent seeds
    (BLAKE2b hash).
    """
    text = "\x1f".join(str(part) for part in purpose)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
