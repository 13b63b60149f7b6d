"""Stop when the verifier fails on too many responses."""

from __future__ import annotations

from sppo_ray.errors import UserError

_LIMITS = ("timeout", "timed out", "deadline", "memory")
"""What the reason of an error says when a limit of the verifier was reached."""


def require_few_errors(where: str, errors: int, total: int, limit: float, last: str = "") -> None:
    """Raise UserError when more than the share `limit` of `total` responses are errors. `last`: the
    prompt and reason of one of them.
    """
    if errors <= limit * total:
        return
    if any(word in last for word in _LIMITS):
        remedy = "raise reward.deadline_s or reward.memory_mib, or reward.max_error_rate"
    else:
        remedy = (
            "correct what fails, so that every response gets a number, or raise reward.max_error_rate to "
            "leave such responses out"
        )
    example = f"; last: {last}" if last else ""
    raise UserError(
        f"{where}: the verifier failed on {errors} of {total} responses, more than reward.max_error_rate "
        f"{limit:g} allows{example}: {remedy}"
    )
