"""Format a job as text for a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sppo_ray.formatting import format_seconds

if TYPE_CHECKING:
    from sppo_ray.api.schemas import Job, LastError, Worker


def describe(job: Job) -> str:
    """Describe a job's state for people, one fact per line, without empty fields."""
    workers = ", ".join(_worker(worker) for worker in job.workers)
    facts: list[tuple[str, Any]] = [
        ("job", job.id),
        ("state", f"{job.state} ({job.phase}{f', {job.stage}' if job.stage else ''})"),
        ("step", position(job) + _time_left(job)),
        (
            "budget",
            None if job.budget_s is None else f"{job.seconds:.0f} of {job.budget_s:.0f} s of training",
        ),
        ("reward", None if job.reward is None else figure(job.reward)),
        (
            "accuracy",
            None if job.accuracy is None else f"{figure(job.accuracy)} (best {figure(job.best_accuracy)})",
        ),
        ("tokens/s", None if job.tokens_per_second is None else f"{job.tokens_per_second:.0f}"),
        ("policy", None if job.policy_version is None else f"version {job.policy_version}"),
        ("workers", workers or None),
        ("restarts", _restarts(job) or None),
        ("waiting", ", ".join(f"{p.worker} for {p.waiting_for}" for p in job.pending) or None),
        (
            "commands",
            ", ".join(
                f"{c.kind} {c.outcome}" + (f" ({c.detail})" if c.outcome == "refused" else "")
                for c in job.commands
            )
            or None,
        ),
        (
            "checkpoints",
            ", ".join(f"step {c.step} ({c.bytes / 2**20:.1f} MiB)" for c in job.checkpoints) or None,
        ),
        ("alerts", "; ".join(alert.message for alert in job.alerts) or None),
        ("error", None if job.last_error is None else _error(job.last_error)),
    ]
    return harmless("\n".join(f"{name:<12} {value}" for name, value in facts if value is not None))


def _worker(worker: Worker) -> str:
    """Format a worker: "rollout-0 healthy v7"; a new engine has no version before its sync."""
    version = "" if worker.version is None else f" v{worker.version}"
    return f"{worker.name} {worker.state.lower()}{version}"


def _error(error: LastError) -> str:
    """Format the error with the failed actor's name, which most messages begin with."""
    is_named = error.actor is None or error.message.startswith(error.actor)
    return error.message if is_named else f"{error.actor} {error.message}"


def _time_left(job: Job) -> str:
    return "" if job.eta_s is None else f", about {format_seconds(job.eta_s, whole=True)} left"


def harmless(text: str, *, lines: bool = True) -> str:
    """Make control characters visible: `text` may contain model output, and a terminal would
    execute them.

    Tabs stay. With `lines`, line breaks stay too, and carriage returns become line breaks.
    """
    kept = "\t\n" if lines else "\t"
    text = text.replace("\r\n", "\n").replace("\r", "\n") if lines else text
    return "".join(mark if mark.isprintable() or mark in kept else repr(mark)[1:-1] for mark in text)


def _restarts(job: Job) -> str:
    """Format the total restarts, and those of each current process."""
    anew = ", ".join(f"{actor.name} {actor.restarts}" for actor in job.actors if actor.restarts)
    return f"{job.restarts}" + (f" ({anew})" if anew else "") if job.restarts or anew else ""


def position(job: Job) -> str:
    """Format the steps done: 12/60, or 12 (23%) when a budget of seconds will end the run first."""
    share = 0.0 if job.budget_s is None else job.seconds / job.budget_s
    if job.budget_s is not None and share >= (job.step / job.steps if job.steps else 0.0):
        return f"{job.step} ({min(share, 1.0):.0%})"
    return f"{job.step}/{job.steps if job.steps is not None else '?'}"


def figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "-"


def date_of(unix: float | None) -> str:
    return "-" if unix is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(unix))
