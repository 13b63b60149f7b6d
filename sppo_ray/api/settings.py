"""Settings of the server, for `sppo-ray serve` and the Ray Serve application."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from sppo_ray.settings import PositiveInt, Settings

JOB_SERVER = "http://127.0.0.1:8265"  # a head on this machine


class ApiSettings(Settings):
    runs: Path
    """Directory whose children are run directories. Servers and jobs must see it under the same
    path.
    """
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8642
    ray_address: str | None = None
    """Ray's job server, e.g. http://127.0.0.1:8265. null = $RAY_ADDRESS, else that address."""
    tokens: Path | None = None
    """File of tokens (sppo-ray token). null = $SPPO_RAY_API_TOKENS, else none: loopback only."""
    allow: tuple[Path, ...] = ()
    """Directories that may contain recipes, data and checkpoints of submitted jobs. None by
    default: only shipped recipes, bundled models and generated data.
    """
    allow_modules: tuple[str, ...] = ()
    """Modules, or packages with all their modules, whose functions a job may use as its verifier
    (reward.function.type=custom). The reward functions of this package need no permission.
    """
    allow_unconfined: tuple[str, ...] = ()
    """Of these, modules that may have network, files and environment
    (reward.function.confined=false); and hosts of judges, with their port (reward.function.url).
    """
    cors_origins: tuple[str, ...] = ()
    """Origins of foreign pages that may call the API from a browser; none by default."""
    python: str = sys.executable
    """Python interpreter of a job's entrypoint on the head node."""
    max_body_bytes: PositiveInt = 1 << 20
    body_timeout_s: Annotated[float, Field(gt=0)] = 20.0
    """How long a request's body may take to arrive, from its first byte to its last."""
    rate_per_second: Annotated[float, Field(ge=0)] = 100.0
    """Requests that one token (or one address without token) may make a second; 0 = no limit.
    Bursts are three times that.
    """
    max_streams: PositiveInt = 256
    """Open event and log streams."""
    max_streams_per_caller: PositiveInt = 64
    """Of these, what one token (or one address without token) may have open."""
    refresh_s: Annotated[float, Field(ge=0)] = 1.0
    """Maximum age of an answer: run directories are read again after this time."""

    @field_validator("ray_address")
    @classmethod
    def _names_a_job_server(cls, address: str | None) -> str | None:
        """Check for a scheme: Ray treats an address without one as a cluster's, and waits for it
        silently.
        """
        if address is not None and not address.startswith(("http://", "https://")):
            raise ValueError(
                f"{address!r} is not a URL of a job server: write it with http:// or https://, e.g. "
                f"{JOB_SERVER}"
            )
        return address

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`, a name or an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False
