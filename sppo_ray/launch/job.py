"""Write job.json: the process, host and job of a run. Every start of `sppo-ray train` writes it.

A job is a Ray job, or all starts by one supervisor (`--restarts`), so a job may have several
starts.
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
from sppo_ray.rundir.job import ContinuedRun, JobRecord, read_job, write_job_record
from sppo_ray.rundir.layout import RunDir

# set by `launch.supervisor` for its child processes: its own id
SUPERVISOR = "SPPO_RAY_SUPERVISOR"
# set by Ray for the entrypoint of a submitted job; that is its whole name
RAY_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def write_job(run_dir: RunDir, config: RunConfig, continues: ContinuedRun | None = None) -> None:
    """Write job.json. `started` is the time of this start, `job_started` of the job's first start,
    `created` of the run's first start. `continues` is the run whose export this one starts from.
    """
    now = time.time()
    before = read_job(run_dir.path)
    write_job_record(
        run_dir,
        JobRecord(
            run_id=run_dir.path.name,
            submission_id=submission_id(),
            supervisor=os.environ.get(SUPERVISOR),
            ray_address=config.cluster.address or os.environ.get("RAY_ADDRESS"),
            host=socket.gethostname(),
            pid=os.getpid(),
            entrypoint=tuple(redact(word) for word in sys.argv),
            created=before.created or now,
            job_started=job_start(run_dir) or now,
            started=now,
            models=before.models,
            continues=continues or before.continues,
        ),
    )


def submission_id() -> str | None:
    """Return Ray's submission id of this process's job; None when it was not submitted to Ray."""
    try:
        job: Any = json.loads(os.environ.get(RAY_JOB_CONFIG, "{}"))
        return job["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return None


def job_start(run_dir: RunDir) -> float | None:
    """Return the time of this job's first start, as the previous start wrote it; None when that was
    another job.
    """
    before = read_job(run_dir.path)
    is_same = (before.submission_id, before.supervisor) == (submission_id(), os.environ.get(SUPERVISOR))
    has_name = submission_id() is not None or SUPERVISOR in os.environ
    return before.job_started if is_same and has_name else None
