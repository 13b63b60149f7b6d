"""`sppo-ray score`: print the training verifier's verdicts, one JSON line each."""

from __future__ import annotations

import sys
from typing import Annotated

from typer import Argument

from sppo_ray.cli.shared import Overrides


def score(
    file: Annotated[str, Argument(help='JSON lines {"response", "ground_truth"}')], *, overrides: Overrides
) -> int:
    """Score responses with the verifier that training uses. Exit code 1: it can score none."""
    from sppo_ray.cli.score_file import score_file
    from sppo_ray.config.loading import parse_reward_settings

    scored, errors = score_file(file, parse_reward_settings(overrides), sys.stdout)
    if errors:
        print(f"{errors} of {scored + errors} responses could not be scored (reward null)", file=sys.stderr)
    return 0 if scored else 1
