"""`sppo-ray serve`: the server as a process."""

from __future__ import annotations

import logging
import sys

from sppo_ray.api.app import create_app
from sppo_ray.api.settings import ApiSettings

GRACE_S = 5  # open streams are cut off after that


def run(settings: ApiSettings) -> int:
    """Serve until SIGINT or SIGTERM. Raises UserError for settings that do not do."""
    import uvicorn

    app = create_app(settings)
    settings.runs.mkdir(parents=True, exist_ok=True)
    print(f"sppo-ray serves {settings.runs} at http://{settings.host}:{settings.port}/", flush=True)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,  # a line a poll would bury what matters; it could name jobs, never tokens
        log_config=None,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
        limit_concurrency=settings.max_streams + 500,
        h11_max_incomplete_event_size=64 * 1024,
        proxy_headers=False,  # behind a proxy, callers are told apart by their tokens
    )
    uvicorn.Server(config).run()
    return 0
