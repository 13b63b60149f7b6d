"""`sppo-ray serve`: serve the REST API and its page for a directory of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from sppo_ray.cli.shared import repeated, runs_directory


def serve(
    *,
    runs: Annotated[
        Path | None,
        Option(metavar="DIR", help="parent directory of the runs (default: $SPPO_RAY_RUNS, else ./runs)"),
    ] = None,
    host: Annotated[
        str | None,
        Option(help="address to listen on (default: 127.0.0.1); non-loopback addresses need --tokens"),
    ] = None,
    port: Annotated[int | None, Option(help="port (default: 8642)")] = None,
    ray_address: Annotated[
        str | None,
        Option(metavar="URL", help="Ray's job server (default: $RAY_ADDRESS, else http://127.0.0.1:8265)"),
    ] = None,
    tokens: Annotated[
        Path | None, Option(metavar="FILE", help="see `sppo-ray token` (default: $SPPO_RAY_API_TOKENS)")
    ] = None,
    allow: Annotated[
        list[str],
        repeated(metavar="DIR", help="submitted jobs may name recipes, data and checkpoints below it"),
    ],
    allow_modules: Annotated[
        list[str], repeated("--allow-module", metavar="NAME", help="module whose verifiers jobs may use")
    ],
    allow_unconfined: Annotated[
        list[str],
        repeated(
            metavar="NAME",
            help="of these modules, those that may use network, files and environment; HOST:PORT of judges",
        ),
    ],
    cors_origins: Annotated[
        list[str], repeated("--cors-origin", metavar="ORIGIN", help="its pages may call the API")
    ],
    python: Annotated[
        str | None,
        Option(metavar="FILE", help="interpreter of the jobs' entrypoints (default: the server's)"),
    ] = None,
    rate_per_second: Annotated[
        float | None, Option("--rate", help="requests a second and token; 0 = no limit (default: 100)")
    ] = None,
    body_timeout_s: Annotated[
        float | None, Option("--body-timeout", help="seconds for a body (default: 20)")
    ] = None,
    max_body_bytes: Annotated[int | None, Option(help="bytes of a body (default: 1048576)")] = None,
    max_streams: Annotated[int | None, Option(help="open event and log streams (default: 256)")] = None,
    max_streams_per_caller: Annotated[int | None, Option(help="open streams per token (default: 64)")] = None,
) -> int:
    """Serve the REST API and its page for a directory of runs."""
    runs = runs or runs_directory()
    given = {name: value for name, value in locals().items() if value not in (None, [])}

    from sppo_ray.api.server import run
    from sppo_ray.api.settings import ApiSettings
    from sppo_ray.config.loading import parse_settings

    return run(parse_settings(ApiSettings, given, (), "serve"))
