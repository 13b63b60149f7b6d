"""The same server as a Ray Serve application:

    serve run sppo_ray.api.serve_app:application runs=/shared/runs tokens=/etc/sppo-ray/tokens

In a Serve config file: import_path sppo_ray.api.serve_app:application, and the fields of `ApiSettings` under args. One replica is
enough and is what keeps its memory of Ray's list; more than one answer alike, for the run directories are the record.
"""

from __future__ import annotations

from typing import Any

from sppo_ray.api.settings import ApiSettings
from sppo_ray.errors import UserError


def application(arguments: dict[str, Any]) -> Any:
    """The Serve application for the settings in `arguments`; fails here, not in a replica, when they do not do.

    Serve's proxy decides which address is open, so that tokens are required.
    """
    from ray import serve

    from sppo_ray.api.app import create_app
    from sppo_ray.api.tokens import TokenStore
    from sppo_ray.config_loading import parse_settings

    settings = parse_settings(ApiSettings, dict(arguments), (), "args")
    if not TokenStore(settings.tokens).required:
        raise UserError("args.tokens: Ray Serve listens for others, so tokens are required: `sppo-ray token NAME --tokens FILE`")

    def build() -> Any:
        return create_app(settings)

    @serve.deployment(name="sppo-ray-api", num_replicas=1, max_ongoing_requests=settings.max_streams + 100)
    @serve.ingress(build)
    class Api:
        """Made of the ASGI application alone."""

    return Api.bind()
