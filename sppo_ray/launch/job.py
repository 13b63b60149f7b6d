"""job.json: which process runs a run, where, and as which Ray job; written by every start of `sppo-ray train`."""

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

RAY_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the entrypoint of a submitted job; that is its whole name


def write_job(run_dir: RunDir, config: RunConfig) -> None:
    """`started` is of this incarnation, `created` of the first."""
    now = time.time()
    run_dir.write_json(
        run_dir.job.name,
        {
            "run_id": run_dir.path.name,
            "submission_id": submission_id(),
            "ray_address": config.cluster.address or os.environ.get("RAY_ADDRESS"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "entrypoint": [redact(word) for word in sys.argv],
            "created": _created(run_dir) or now,
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


def _created(run_dir: RunDir) -> float | None:
    try:
        return json.loads(run_dir.job.read_text(encoding="utf-8"))["created"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
