"""`sppo-ray delete`: removes a job that has ended, over the REST API."""

from __future__ import annotations

import sys
from typing import Annotated

from typer import Option

from sppo_ray.cli.shared import JobId, Url
from sppo_ray.errors import UserError

EXIT_NOT_DELETED = 1


def delete(
    job: JobId, *, yes: Annotated[bool, Option("--yes", help="do not ask")] = False, url: Url = None
) -> int:
    """Delete a job that has ended, with its run directory."""
    from sppo_ray.api.client import Client

    if not yes:
        if not sys.stdin.isatty():
            raise UserError("delete removes metrics, samples and checkpoints: say --yes")
        answer = input(f"delete {job} with its metrics, samples and checkpoints? [y/N] ")
        if answer.strip().lower() != "y":
            return EXIT_NOT_DELETED
    with Client(url) as client:
        client.delete_job(job)
    print(f"deleted {job}")
    return 0
