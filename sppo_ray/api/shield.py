"""What stands before every handler, as one plain ASGI layer: who may knock at all, how much they may send, safe headers.

Without tokens only this machine is served, and only under a loopback name: a web page somewhere can make a browser here send
requests to 127.0.0.1, under a name of its own (DNS rebinding) or blindly (CSRF). Both show in Host and Origin.
"""

from __future__ import annotations

import math
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
UNLIMITED_PATHS = {"/healthz", "/readyz"}  # a probe that is turned away restarts the server
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)  # no inline script: model output that slips through stays text
SAFE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Shield:
    """Sets `scope[CALLER]` to who asks (`tokens.Caller`; None = no valid token) and lets through what may pass.

    `scope[ADMITTED]()` says whether the token is still good, for answers that take long; `scope[SHARE]` whose limits count.
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
            status, detail, extra = refusal
            await problem_response(status, detail, headers=extra)(scope, receive, safe_send)
            return
        await self._app(scope, self._bounded(receive), safe_send)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str, dict[str, str] | None] | None:
        """(status, detail, headers) of the answer to what may not pass."""
        if not self._tokens.required:
            client = scope.get("client")
            if client and not is_loopback(client[0]):
                return 403, "without tokens only this machine is served: start the server with --tokens FILE", None
            if not is_loopback(_host_of(headers.get("host", ""))):
                return 403, "without tokens the server answers to localhost only: start it with --tokens FILE", None
        if scope["method"] in UNSAFE_METHODS and not self._is_own_origin(headers):
            return 403, f"a page of {headers['origin'][:100]} may not do this: see --cors-origin", None
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._settings.max_body_bytes:
            return 413, self._too_large(), None
        if scope["path"] not in UNLIMITED_PATHS:
            wait = self._limiter.wait_s(scope[SHARE])
            if wait > 0:
                return 429, f"too many requests: wait {wait:.2f} s", {"Retry-After": str(math.ceil(wait))}
        return None

    def _is_own_origin(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or origin in self._settings.cors_origins:
            return True  # browsers always name it where it matters; other clients have no reason to
        try:
            return urlsplit(origin).netloc == headers.get("host", "")
        except ValueError:  # no URL, such as http://[x
            return False

    def _bounded(self, receive: Receive) -> Receive:
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._settings.max_body_bytes:
                raise HTTPException(413, self._too_large())  # of FastAPI: it alone passes through its parser
            return message

        return bounded

    def _too_large(self) -> str:
        return f"the body is larger than {self._settings.max_body_bytes} bytes: send less"


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
    """Without its port; "" for what is no host."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _bearer_token(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def share_of(scope: Scope) -> str:
    """Whose share of requests and streams it is: a known caller has one of its own, wherever it comes from; the unknown share
    that of their address."""
    caller = scope[CALLER]
    address = (scope.get("client") or ("-",))[0]
    return f"address {address}" if caller is None or caller == LOCAL else f"token {caller.name}"
