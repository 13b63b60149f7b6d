"""job.json: which process runs a run, where, and as which job; written by every start of `sppo-ray train`.

A job is a Ray job, or what one supervisor (`--restarts`) starts again and again: several starts may belong to one.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

from sppo_ray.config import RunConfig
from sppo_ray.redaction import redact
from sppo_ray.trainer.rundir import RunDir

SUPERVISOR = "SPPO_RAY_SUPERVISOR"  # set by `launch.supervisor` for the processes that it starts: its own id
RAY_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the entrypoint of a submitted job; that is its whole name


def write_job(run_dir: RunDir, config: RunConfig) -> None:
    """`started` is of this start, `job_started` of the first of this job, `created` of the first of all."""
    now = time.time()
    before = _before(run_dir)
    run_dir.write_json(
        run_dir.job.name,
        {
            "run_id": run_dir.path.name,
            "submission_id": submission_id(),
            "supervisor": os.environ.get(SUPERVISOR),
            "ray_address": config.cluster.address or os.environ.get("RAY_ADDRESS"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "entrypoint": [redact(word) for word in sys.argv],
            "created": before.get("created") or now,
            "job_started": job_start(run_dir) or now,
            "started": now,
        },
    )


def submission_id() -> str | None:
    """The id under which Ray knows this process's job; None when it was not submitted to Ray."""
    try:
        job: Any = json.loads(os.environ.get(RAY_JOB_CONFIG, "{}"))
        return job["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return None


def job_start(run_dir: RunDir) -> float | None:
    """When the job of this process first started the run, by what the start before wrote; None when that was another job's."""
    before = _before(run_dir)
    is_same = (before.get("submission_id"), before.get("supervisor")) == (submission_id(), os.environ.get(SUPERVISOR))
    has_name = submission_id() is not None or SUPERVISOR in os.environ
    began = before.get("job_started")
    return began if is_same and has_name and isinstance(began, float) else None


def _before(run_dir: RunDir) -> dict[str, Any]:
    """What the start before wrote; empty when there was none."""
    try:
        found = json.loads(run_dir.job.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
