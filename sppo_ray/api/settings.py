"""How a server is set up: one model for `sppo-ray serve` and for the Ray Serve application alike."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from sppo_ray.settings import PositiveInt, Settings

JOB_SERVER = "http://127.0.0.1:8265"  # of a head on this machine


class ApiSettings(Settings):
    runs: Path
    """Directory whose children are run directories. Servers and jobs have to see it under the same path."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8642
    ray_address: str | None = None
    """Ray's job server, e.g. http://127.0.0.1:8265. null = $RAY_ADDRESS, else that address."""
    tokens: Path | None = None
    """File of tokens (sppo-ray token). null = $SPPO_RAY_API_TOKENS, else none: loopback only."""
    allow: tuple[Path, ...] = ()
    """Directories below which recipes, data and checkpoints of submitted jobs may lie. None by default: recipes that ship,
    bundled models and generated data only."""
    allow_modules: tuple[str, ...] = ()
    """Python packages whose functions a submitted job may use as its verifier (reward.function.type=custom)."""
    cors_origins: tuple[str, ...] = ()
    """Origins of foreign pages that may call the API from a browser; none by default."""
    python: str = sys.executable
    """Interpreter that a job's entrypoint starts on the head node."""
    max_body_bytes: PositiveInt = 1 << 20
    rate_per_second: Annotated[float, Field(ge=0)] = 100.0
    """Requests that one token (or one address without token) may make a second; 0 = no limit. Bursts are three times that."""
    max_streams: PositiveInt = 256
    """Open event and log streams."""
    max_streams_per_caller: PositiveInt = 64
    """Of these, what one token (or one address without token) may have open."""
    refresh_s: Annotated[float, Field(ge=0)] = 1.0
    """How old an answer may be: run directories are looked at again after that."""

    @field_validator("ray_address")
    @classmethod
    def _names_a_job_server(cls, address: str | None) -> str | None:
        """Ray takes an address without a scheme for that of a cluster, and waits for it without a word."""
        if address is not None and not address.startswith(("http://", "https://")):
            raise ValueError(f"{address!r} is no URL of a job server: write it with http:// or https://, e.g. {JOB_SERVER}")
        return address

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches `host`, a name or an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False
