"""Seeds that depend on what a random number is FOR, never on who draws it or when."""

from __future__ import annotations

import hashlib


def derive_seed(*purpose: int | str) -> int:
    """A seed in [0, 2**63) for a purpose, e.g. derive_seed(run_seed, "rollout", step, index).

    Equal purposes give equal seeds in every process; different ones are independent (BLAKE2b).
    """
    text = "\x1f".join(str(part) for part in purpose)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
