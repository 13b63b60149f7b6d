"""The same server as a Ray Serve application:

    serve run sppo_ray.api.serve_app:application runs=/shared/runs tokens=/etc/sppo-ray/tokens

In a Serve config file: import_path sppo_ray.api.serve_app:application, and the fields of
`ApiSettings` under args. One replica is enough. More replicas give the same answers, because the
run directories are the only state.
"""

from __future__ import annotations

from typing import Any

from sppo_ray.api.settings import ApiSettings
from sppo_ray.errors import UserError


def application(arguments: dict[str, Any]) -> Any:
    """Build the Serve application from the settings in `arguments`; invalid settings fail here, not
    in a replica.

    Serve's proxy chooses the address, so tokens are required.
    """
    from ray import serve

    from sppo_ray.api.app import create_app
    from sppo_ray.api.tokens import TokenStore
    from sppo_ray.config.loading import parse_settings

    settings = parse_settings(ApiSettings, dict(arguments), (), "args")
    if not TokenStore(settings.tokens).required:
        raise UserError(
            "args.tokens: Ray Serve listens for others, so tokens are required: `sppo-ray token NAME "
            "--tokens FILE`"
        )

    def build() -> Any:
        return create_app(settings)

    @serve.deployment(name="sppo-ray-api", num_replicas=1, max_ongoing_requests=settings.max_streams + 100)
    @serve.ingress(build)
    class Api:
        """A deployment that only serves the ASGI application."""

    return Api.bind()
