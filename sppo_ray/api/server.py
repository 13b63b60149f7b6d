"""`sppo-ray serve`: run the server as a process."""

from __future__ import annotations

import logging
import sys

from sppo_ray.api.app import create_app
from sppo_ray.api.settings import ApiSettings

GRACE_S = 5  # open streams are closed after this time


def run(settings: ApiSettings) -> int:
    """Serve until SIGINT or SIGTERM. Raises UserError for invalid settings."""
    import uvicorn

    from sppo_ray.api.connection import BoundedProtocol

    app = create_app(settings)
    settings.runs.mkdir(parents=True, exist_ok=True)
    print(f"sppo-ray serves {settings.runs} at http://{settings.host}:{settings.port}/", flush=True)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,  # one line per poll would hide important lines
        log_config=None,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
        limit_concurrency=settings.max_streams + 500,
        http=BoundedProtocol,
        ws="none",
        proxy_headers=False,  # behind a proxy, tokens identify callers
    )
    uvicorn.Server(config).run()
    return 0
