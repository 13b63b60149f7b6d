"""All error answers as RFC 9457 problem documents, including those of the framework."""

from __future__ import annotations

import http
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from sppo_ray.api.schemas import FieldError
from sppo_ray.redaction import redact

MEDIA_TYPE = "application/problem+json"
log = logging.getLogger("sppo_ray.api")


class ApiProblem(Exception):
    """Raised by a handler to answer with a problem. `detail` names the cause and the remedy."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str | None = None,
        errors: Sequence[FieldError] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.kind = status, detail, kind
        self.errors, self.headers = list(errors), headers or {}


def problem_response(
    status: int,
    detail: str,
    *,
    kind: str | None = None,
    errors: Sequence[FieldError] = (),
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    title = http.HTTPStatus(status).phrase
    body: dict[str, Any] = {
        "type": f"urn:sppo-ray:{kind or title.lower().replace(' ', '-')}",
        "title": title,
        "status": status,
        "detail": detail,
        "errors": [error.model_dump() for error in errors],
    }
    return JSONResponse(body, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def unknown_job(job_id: str) -> ApiProblem:
    return ApiProblem(404, f"there is no job {_short(job_id)}: GET /v1/jobs lists them", kind="unknown-job")


def install(app: FastAPI) -> None:
    app.add_exception_handler(ApiProblem, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(Exception, _unexpected)


async def _known(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiProblem)
    return problem_response(
        error.status, error.detail, kind=error.kind, errors=error.errors, headers=error.headers
    )


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [_field_error(item) for item in error.errors()[:50]]
    detail = "; ".join(f"{item.path}: {item.message}" for item in errors[:3])
    return problem_response(422, f"the request does not fit: {detail}", kind="invalid-request", errors=errors)


def _field_error(item: Any) -> FieldError:
    location = list(item["loc"])
    if item["type"] == "json_invalid":  # its location is a position in the text, not a field
        return FieldError(
            path="body",
            message=f"not valid JSON at character {location[-1]} ({item['ctx']['error']}): send an object",
        )
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = "unknown field: see /openapi.json for those there are"
    # The name of an unknown field may itself be a secret.
    return FieldError(path=redact(".".join(str(part)[:200] for part in location[:30])), message=message)


async def _framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    # FastAPI answers 400 to a body that is not text, but 422 to broken JSON
    if error.status_code == 400:
        unreadable = FieldError(path="body", message="cannot be read: send a JSON object in UTF-8")
        return problem_response(422, "the body cannot be read", kind="invalid-request", errors=[unreadable])
    details = {
        404: f"nothing is at {_short(request.scope['path'])}: /openapi.json lists what there is",
        405: f"{request.method} is not possible here: see the Allow header",
    }
    detail = details.get(error.status_code, str(error.detail))
    return problem_response(error.status_code, detail, headers=dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    return problem_response(500, "the server failed on this request; its log says why", kind="internal")


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:97] + "...")
