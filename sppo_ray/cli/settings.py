"""`sppo-ray settings`: print the reference page of all settings."""

from __future__ import annotations

from typing import Annotated

from typer import Argument


def settings(
    word: Annotated[str | None, Argument(metavar="WORD", help="only those with WORD in their name")] = None,
) -> int:
    """Print every setting with its default and meaning."""
    from sppo_ray.config.reference import named, reference

    print(reference() if word is None else named(word), end="")
    return 0
