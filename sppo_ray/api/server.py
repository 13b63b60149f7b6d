"""`sppo-ray serve`: run the server as a process."""

from __future__ import annotations

import logging
import socket
import sys

from sppo_ray.api.app import create_app
from sppo_ray.api.settings import ApiSettings
from sppo_ray.errors import UserError

GRACE_S = 5  # open streams are closed after this time


def run(settings: ApiSettings) -> int:
    """Serve until SIGINT or SIGTERM. Raises UserError for invalid settings and a taken port."""
    import uvicorn

    from sppo_ray.api.connection import BoundedProtocol

    app = create_app(settings)
    listener = _listener(settings.host.strip("[]"), settings.port)
    port = listener.getsockname()[1]  # with 0, the system chooses
    if not settings.runs.is_dir():
        settings.runs.mkdir(parents=True)
        print(f"{settings.runs} did not exist and was made: it has no runs yet", flush=True)
    print(f"sppo-ray serves {settings.runs} at http://{settings.host}:{port}/", flush=True)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = uvicorn.Config(
        app,
        access_log=False,  # one line per poll would hide important lines
        log_config=None,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
        limit_concurrency=settings.max_streams + 500,
        http=BoundedProtocol,
        ws="none",
        proxy_headers=False,  # behind a proxy, tokens identify callers
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]  # Python repeats the address there
        raise UserError(
            f"serve: cannot listen at {host}:{port} ({why}): end the program that does, or choose "
            "another --port or --host"
        ) from None
