"""Bearer tokens: made once, kept as SHA-256 only, compared in constant time, revoked by removing
their line.

One a line, in a file or in $SPPO_RAY_API_TOKENS (there, lines may be separated by semicolons as
well):

    NAME ROLE sha256:HEX        # role: viewer (reads) or operator (reads, submits, scales, stops,
                                deletes)

A token has 256 random bits, so a plain hash is as safe as a slow one.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sppo_ray.errors import UserError

ENVIRONMENT = "SPPO_RAY_API_TOKENS"
PREFIX = "sppo_"
RECHECK_S = 1.0  # how long a revoked token may still work
Role = Literal["viewer", "operator"]
_LINE = re.compile(r"(?P<name>[\w.@-]{1,64})\s+(?P<role>viewer|operator)\s+sha256:(?P<hash>[0-9a-f]{64})")
log = logging.getLogger("sppo_ray.api")


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller. Without tokens (loopback) every caller is the operator `local`."""

    name: str
    role: Role

    @property
    def may_write(self) -> bool:
        return self.role == "operator"


LOCAL = Caller("local", "operator")


def new_token(name: str, role: Role) -> tuple[str, str]:
    """Return (token, line for the file). The token itself is not stored."""
    token = PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {role} sha256:{_digest(token)}"
    if not _LINE.fullmatch(line):
        raise UserError(f"token name {name!r}: 1 to 64 letters, digits, dots, dashes or @")
    return token, line


def add_token(path: Path, name: str, role: Role) -> str:
    """Append a new token's line to `path` (made with mode 0600 when missing) and return the
    token.
    """
    token, line = new_token(name, role)
    if path.exists() and any(
        entry.startswith(f"{name} ") for entry in path.read_text(encoding="utf-8").splitlines()
    ):
        raise UserError(
            f"{path}: there is a token named {name} already: choose another name, or remove its line first"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    return token


def parse_tokens(text: str, origin: str) -> dict[str, Caller]:
    """Parse lines into SHA-256 hex -> caller. Raises UserError naming the line without its content,
    which may be a token.
    """
    callers: dict[str, Caller] = {}
    for number, line in enumerate(re.split(r"[\n;]", text), start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        match = _LINE.fullmatch(entry)
        if match is None:
            raise UserError(
                f"{origin}:{number}: not NAME viewer|operator sha256:HEX; `sppo-ray token` makes such a line"
            )
        callers[match["hash"]] = Caller(match["name"], match["role"])  # type: ignore[arg-type]
    return callers


class TokenStore:
    """The valid tokens. A file is read again when it changes; an unreadable one refuses all
    callers.
    """

    def __init__(self, path: Path | None) -> None:
        """`path` None = from the environment. Raises UserError when the source is set and holds no
        valid token.
        """
        self._path = path
        self._lock = threading.Lock()
        self._signature: tuple[int, int, int] | None = None
        self._checked = -RECHECK_S
        self._callers: dict[str, Caller] = {}
        text = os.environ.get(ENVIRONMENT, "")
        if path is not None:
            self._callers = self._read(path)
        elif text.strip():
            self._callers = parse_tokens(text, f"${ENVIRONMENT}")
        self.required = path is not None or bool(text.strip())
        if self.required and not self._callers:
            raise UserError(
                f"{path or '$' + ENVIRONMENT}: holds no token: make one with `sppo-ray token NAME --tokens "
                "FILE`"
            )

    def caller(self, token: str | None) -> Caller | None:
        """Return the caller with `token`, or None. Takes constant time, independent of the
        token.
        """
        if not self.required:
            return LOCAL
        self._reload()
        given = _digest(token or "").encode()
        found = None
        for digest, caller in self._callers.items():
            if hmac.compare_digest(given, digest.encode()):
                found = caller
        return found

    def _read(self, path: Path) -> dict[str, Caller]:
        try:
            found = path.stat()
            self._signature = (found.st_mtime_ns, found.st_size, found.st_ino)
            return parse_tokens(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            self._signature = None
            raise UserError(f"{path}: the tokens cannot be read ({error}): check --tokens") from None

    def _reload(self) -> None:
        if self._path is None or time.monotonic() - self._checked < RECHECK_S:
            return
        with self._lock:
            self._checked = time.monotonic()
            try:
                found = self._path.stat()
                if (found.st_mtime_ns, found.st_size, found.st_ino) != self._signature:
                    self._callers = self._read(self._path)
            except (OSError, UserError) as error:
                log.error("no token is accepted until this is fixed: %s", error)
                self._callers = {}
                self._signature = None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", errors="surrogateescape")).hexdigest()
