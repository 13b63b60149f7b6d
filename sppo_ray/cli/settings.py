"""`sppo-ray settings`: print the reference page of all settings."""

from __future__ import annotations


def settings() -> int:
    """Print every setting with its default and meaning."""
    from sppo_ray.config.reference import reference

    print(reference(), end="")
    return 0
