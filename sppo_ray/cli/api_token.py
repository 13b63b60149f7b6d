"""`sppo-ray token`: make a token of the REST API and add its hash to the server's file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option


def token(
    name: Annotated[str, Argument(help="its owner; shown in the record of commands")],
    *,
    role: Annotated[
        Literal["viewer", "operator"], Option(help="viewer reads; operator also acts")
    ] = "viewer",
    tokens: Annotated[
        Path, Option(metavar="FILE", help="its hash is added here; remove the line to revoke it")
    ],
) -> int:
    """Make a token for the REST API and print it once."""
    from sppo_ray.api.tokens import add_token

    print(add_token(tokens, name, role))
    print(f"{role} {name}: its hash is in {tokens}; the token itself is shown only now", file=sys.stderr)
    return 0
