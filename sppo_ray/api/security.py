"""The security layer before every handler, as plain ASGI: authentication, limits, safe headers.

Without tokens the server answers only this machine, and only under a loopback name: a foreign web
page can make a local browser send requests to 127.0.0.1, under a foreign name (DNS rebinding) or
blindly (CSRF). Host and Origin show both.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sppo_ray.api.limits import RateLimiter
from sppo_ray.api.problems import problem_response
from sppo_ray.api.settings import ApiSettings, is_loopback
from sppo_ray.api.tokens import LOCAL, TokenStore

CALLER = "sppo_ray.caller"
ADMITTED = "sppo_ray.admitted"
SHARE = "sppo_ray.share"
UNSAFE_METHODS = {"POST", "PUT", "PATCH", "DELETE"}
UNLIMITED_PATHS = {"/healthz", "/readyz"}  # a refused probe would restart the server
# and files below /ui/: they hold no data
PUBLIC_PATHS = {"/", "/ui", "/openapi.json", *UNLIMITED_PATHS}
NO_TOKEN = "no valid token: send `Authorization: Bearer TOKEN`; `sppo-ray token NAME --tokens FILE` makes one"
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="sppo-ray"'}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)  # no inline script, so that unescaped model output cannot run
SAFE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a refused request."""

    status: int
    detail: str
    kind: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


class SecurityMiddleware:
    """Authenticates requests and sets `scope[CALLER]` (`tokens.Caller`; None = no valid token).

    A refused request is answered before its body is read, and the connection is closed. So slow or
    endless bodies do not block the server, and only authorised callers learn about errors in a
    body. `scope[ADMITTED]()` says whether the token is still valid, for long answers;
    `scope[SHARE]` names whose limits count.
    """

    def __init__(self, app: ASGIApp, *, settings: ApiSettings, tokens: TokenStore) -> None:
        self._app = app
        self._settings = settings
        self._tokens = tokens
        self._limiter = RateLimiter(settings.rate_per_second)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        safe_send = _with_safe_headers(send)
        headers = Headers(scope=scope)
        token = _bearer_token(headers)
        scope[CALLER] = self._tokens.caller(token)
        scope[SHARE] = share_of(scope)
        scope[ADMITTED] = lambda: self._tokens.caller(token) is not None
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            extra = refusal.headers | {"Connection": "close"} | self._cors(headers)
            answer = problem_response(refusal.status, refusal.detail, kind=refusal.kind, headers=extra)
            await answer(scope, receive, safe_send)
            return
        await self._app(scope, self._bounded(receive), safe_send)

    def _refusal(self, scope: Scope, headers: Headers) -> Refusal | None:
        if not self._tokens.required:
            client = scope.get("client")
            if client and not is_loopback(client[0]):
                return Refusal(
                    403, "without tokens only this machine is served: start the server with --tokens FILE"
                )
            if not is_loopback(_host_of(headers.get("host", ""))):
                return Refusal(
                    403, "without tokens the server answers to localhost only: start it with --tokens FILE"
                )
        if scope["method"] in UNSAFE_METHODS and not self._is_own_origin(headers):
            return Refusal(403, f"a page of {headers['origin'][:100]} may not do this: see --cors-origin")
        if scope["path"] not in UNLIMITED_PATHS:
            wait = self._limiter.wait_s(scope[SHARE])
            if wait > 0:
                return Refusal(
                    429,
                    f"too many requests: wait {wait:.2f} s",
                    headers={"Retry-After": str(math.ceil(wait))},
                )
        return _unentitled(scope) or self._oversized(headers)

    def _oversized(self, headers: Headers) -> Refusal | None:
        length = headers.get("content-length", "")
        is_large = length.isdigit() and (len(length) > 15 or int(length) > self._settings.max_body_bytes)
        return Refusal(413, self._too_large()) if is_large else None

    def _cors(self, headers: Headers) -> dict[str, str]:
        """Return CORS headers, so that an allowed page can read a refusal: this answer bypasses the
        layer that adds them.
        """
        origin = headers.get("origin")
        return (
            {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
            if origin in self._settings.cors_origins
            else {}
        )

    def _is_own_origin(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or origin in self._settings.cors_origins:
            return True  # browsers always send it for cross-origin requests; other clients need not
        try:
            return urlsplit(origin).netloc == headers.get("host", "")
        except ValueError:  # not a URL, such as http://[x
            return False

    def _bounded(self, receive: Receive) -> Receive:
        """Wrap `receive` with limits on the body's bytes and seconds."""
        seen, is_whole, deadline = 0, False, None

        async def bounded() -> Message:
            nonlocal seen, is_whole, deadline
            if is_whole:  # the next message is the end of the connection
                return await receive()
            deadline = deadline or asyncio.get_running_loop().time() + self._settings.body_timeout_s
            message = await self._in_time(receive, deadline)
            seen += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if seen > self._settings.max_body_bytes:
                # of FastAPI: only this type passes through its parser
                raise HTTPException(413, self._too_large())
            return message

        return bounded

    async def _in_time(self, receive: Receive, deadline: float) -> Message:
        try:
            async with asyncio.timeout_at(deadline):
                return await receive()
        except TimeoutError:
            detail = (
                f"the body was not there in {self._settings.body_timeout_s:g} s: send it faster, or see "
                "--body-timeout"
            )
            raise HTTPException(408, detail, headers={"Connection": "close"}) from None

    def _too_large(self) -> str:
        return f"the body is larger than {self._settings.max_body_bytes} bytes: send less"


def _unentitled(scope: Scope) -> Refusal | None:
    """Return the refusal of a caller without the required token or role. Handlers check again; this
    check comes before the body is read.
    """
    caller, path, method = scope[CALLER], scope["path"], scope["method"]
    if path in PUBLIC_PATHS or path.startswith("/ui/") or method == "OPTIONS":
        return None
    if caller is None:
        return Refusal(401, NO_TOKEN, headers=CHALLENGE)
    if method in UNSAFE_METHODS and not caller.may_write:
        return Refusal(403, f"token {caller.name} is a viewer's: this takes an operator's", kind="wrong-role")
    return None


def _with_safe_headers(send: Send) -> Send:
    async def safe_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SAFE_HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return safe_send


def _host_of(host: str) -> str:
    """Return the host without its port; "" for an invalid one."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _bearer_token(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def share_of(scope: Scope) -> str:
    """Return the key of the caller's limits: the name of a known caller, else the address."""
    caller = scope[CALLER]
    address = (scope.get("client") or ("-",))[0]
    return f"address {address}" if caller is None or caller == LOCAL else f"token {caller.name}"
