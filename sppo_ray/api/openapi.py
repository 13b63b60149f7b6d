"""Complete the OpenAPI document: the errors of each operation, and examples of answers."""

from __future__ import annotations

import http
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from sppo_ray import __version__
from sppo_ray.api.problems import MEDIA_TYPE
from sppo_ray.api.schemas import Problem

DESCRIPTION = """Submit, watch, scale and stop Sequence-Level PPO training jobs on a Ray cluster.

A job's id is Ray's submission id, or the run id of a run that Ray's job server did not start; either is accepted. Every error is
an RFC 9457 problem document. Times are Unix seconds."""  # noqa: E501

_MEANING = {
    400: "A path or module outside what the server allows",
    401: "No valid token",
    403: "Not an operator's token, or a foreign page",
    404: "There is no such thing",
    408: "The body took too long to arrive",
    409: "Not possible in the state that the job is in",
    413: "The body is too large",
    422: "The request does not fit: errors[].path names the field",
    429: "Too many requests",
    503: "Ray's job server does not answer: try again after Retry-After seconds",
}
_REF = {"$ref": "#/components/schemas/Problem"}

JOB_EXAMPLE: dict[str, Any] = {
    "id": "first",
    "run_id": "first",
    "name": "quickstart",
    "state": "RUNNING",
    "phase": "training",
    "stage": "generate-wait",
    "step": 12,
    "steps": 60,
    "budget_s": None,
    "eta_s": 143.2,
    "reward": 0.61,
    "accuracy": 0.55,
    "best_accuracy": 0.55,
    "tokens_per_second": 2140.5,
    "policy_version": 9,
    "staleness": {"0": 256},
    "workers": [{"name": "rollout-0", "state": "HEALTHY", "version": 9, "restarts": 0, "in_flight": 200,
    "finished": 2872}],
    "wanted_workers": 2,
    "pending": [{"worker": "rollout-1", "waiting_for": "0.5 CPU", "since": 1767225700.0}],
    "actors": [{"name": "learner-0", "restarts": 0, "node_ip": "10.0.0.5", "pid": 4711}],
    "commands": [{"id": "a1b2c3d4e5f60718", "kind": "scale", "by": "alice", "time": 1767225699.5,
    "rollout_workers": 2,
                  "outcome": "done", "detail": "2 workers wanted, was 1"}],
    "restarts": 0,
    "checkpoints": [{"step": 10, "time": 1767225690.0, "bytes": 3145728}],
    "alerts": [{"detector": "kl", "step": 12, "since": 10, "action": "warn",
                "message": "kl: policy/approx_kl_k3 is 0.3 nats a token, since step 10. It usually means "
                           "..."}],
    "last_error": None,
    "algorithm": "sppo",
    "recipe": "quickstart",
    "seed": 1,
    "created": 1767225600.0,
    "started": 1767225603.1,
    "ended": None,
    "updated": 1767225711.0,
    "submission_id": "first",
    "submitted_by": "alice",
    "metadata": {"team": "reasoning"},
    "samples": 3072,
    "tokens": 190464,
    "seconds": 98.7,
}  # fmt: skip


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return `responses` for an operation with these problems, plus those of the security layer."""
    return {
        status: {
            "description": _MEANING[status],
            "content": {MEDIA_TYPE: {"schema": _REF, "example": _example(status)}},
            **({"headers": {"Retry-After": {"schema": {"type": "integer"}}}} if status in (429, 503) else {}),
        }
        for status in sorted({*statuses, 401, 403, 422, 429})
    }


def answer(status: int, description: str, example: Any) -> dict[int | str, dict[str, Any]]:
    """Return a success response with an example; the schema comes from the operation's response
    model.
    """
    return {status: {"description": description, "content": {"application/json": {"example": example}}}}


def install(app: FastAPI) -> None:
    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title="sppo-ray", version=__version__, description=DESCRIPTION, routes=app.routes
            )
            schemas = document["components"]["schemas"]
            own = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= own.pop("$defs", {})
            schemas["Problem"] = own
            schemas.pop("HTTPValidationError", None)
            schemas.pop("ValidationError", None)
            for path in document["paths"].values():
                for operation in path.values():
                    for parameter in operation.get("parameters", ()):
                        _leave_out_null(parameter["schema"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _leave_out_null(schema: dict[str, Any]) -> None:
    """Remove null from optional parameters: a parameter is given or left out, never null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema |= kinds[0]


def _example(status: int) -> dict[str, Any]:
    known = {
        404: ("unknown-job", "there is no job 'nope': GET /v1/jobs lists them", []),
        422: (
            "invalid-settings",
            "quickstart: loop.stepz: unknown setting; did you mean steps?",
            [{"path": "body.overrides.loop.stepz", "message": "unknown setting; did you mean steps?"}],
        ),
    }
    title = http.HTTPStatus(status).phrase
    kind, detail, errors = known.get(status, (title.lower().replace(" ", "-"), _MEANING[status], []))
    return {
        "type": f"urn:sppo-ray:{kind}",
        "title": title,
        "status": status,
        "detail": detail,
        "errors": errors,
    }
