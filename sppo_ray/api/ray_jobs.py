"""Access Ray's job server: a list that is refreshed in the background, and calls with a deadline.

Requests that do not need Ray do not wait for it. `jobs` is None while the job server does not
answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sppo_ray.api.jobs import RayJob, is_training
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.settings import JOB_SERVER

POLL_S = 2.0
AWAY_POLL_S = 5.0
CALL_TIMEOUT_S = 15.0
Answer = TypeVar("Answer")
log = logging.getLogger("sppo_ray.api")


def ray_down(detail: str) -> ApiProblem:
    return ApiProblem(503, detail, kind="ray-down", headers={"Retry-After": "5"})


class RayJobs:
    """Client and list of jobs. Call `start()` and `close()` in the same event loop."""

    def __init__(self, address: str | None) -> None:
        self.address = job_server_address(address)
        self.jobs: Mapping[str, RayJob] | None = None
        self.trouble = ""  # why the job server does not answer
        self._client: Any = None
        self._client_lock = threading.Lock()
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="ray-jobs")
        self._poller: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        return self.jobs is not None

    def require_up(self) -> None:
        """Raises ApiProblem (503) when the job server did not answer the last call."""
        if self.jobs is None:
            raise ray_down(
                f"{self.trouble or 'Ray has not been asked yet'}: start the head, or check --ray-address"
            )

    def start(self) -> None:
        self._poller = asyncio.create_task(self._poll())

    async def close(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def submit(self, entrypoint: str, *, submission_id: str, metadata: Mapping[str, str]) -> None:
        """Submit a job. Raises ApiProblem: 503 when Ray does not answer, 409 when it refuses (the
        id exists).
        """
        await self._call(
            lambda client: client.submit_job(
                entrypoint=entrypoint, submission_id=submission_id, metadata=dict(metadata)
            )
        )
        await self.refresh()

    async def stop(self, submission_id: str) -> None:
        await self._call(lambda client: client.stop_job(submission_id))
        await self.refresh()

    async def delete(self, submission_id: str) -> None:
        await self._call(lambda client: client.delete_job(submission_id))
        await self.refresh()

    async def logs(self, submission_id: str) -> str:
        return await self._call(lambda client: client.get_job_logs(submission_id))

    async def refresh(self) -> None:
        """Refresh the list. Does not raise; `jobs` becomes None when Ray does not answer."""
        try:
            jobs = await self._in_thread(_training_jobs)
        except ApiProblem as problem:
            if self.trouble != problem.detail:
                log.warning("%s", problem.detail)
            self.jobs, self.trouble = None, problem.detail
        else:
            if self.jobs is None:
                log.info("Ray's job server answers at %s", self.address)
                self.trouble = ""
            self.jobs = jobs

    async def _poll(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(POLL_S if self.is_up else AWAY_POLL_S)

    async def _call(self, action: Callable[[Any], Answer]) -> Answer:
        if self.jobs is None:
            await self.refresh()
        self.require_up()
        return await self._in_thread(action)

    async def _in_thread(self, action: Callable[[Any], Answer]) -> Answer:
        def act() -> Answer:
            from ray.exceptions import AuthenticationError

            try:
                return action(self._connected())
            except AuthenticationError as error:
                raise RuntimeError(f"authentication: {error}") from None

        future = asyncio.get_running_loop().run_in_executor(self._threads, act)
        try:
            # wait_for may swallow a cancellation (Python 3.11)
            async with asyncio.timeout(2 * CALL_TIMEOUT_S):
                return await future
        except ApiProblem:
            raise
        except (TimeoutError, ConnectionError, OSError) as error:
            self._client = None
            raise ray_down(
                f"Ray's job server at {self.address} does not answer ({type(error).__name__})"
            ) from error
        except RuntimeError as error:  # how Ray's client reports an error answer
            raise _refused(str(error)) from error
        except Exception as error:  # boundary
            # an answer that Ray's client cannot parse; the poller must continue
            log.error("Ray's job server at %s gave an answer that is none", self.address, exc_info=error)
            raise ray_down(
                f"Ray's job server at {self.address} gave an answer that is none ({type(error).__name__}): "
                "check --ray-address, and that its Ray is of this release; the log of this server says more"
            ) from error

    def _connected(self) -> Any:
        with self._client_lock:
            if self._client is None:
                self._client = _connect(self.address)
            return self._client


def _connect(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Ray's client with a deadline, because a head that hangs would block a thread for ever."""

        def _do_request(self, method: str, endpoint: str, **keywords: Any) -> Any:
            keywords.setdefault("timeout", CALL_TIMEOUT_S)
            return super()._do_request(method, endpoint, **keywords)

    return Client(address)


def _refused(message: str) -> ApiProblem:
    lowered = message.lower()
    if "authentication" in lowered or "status code 401" in lowered or "status code 403" in lowered:
        return ray_down(
            "Ray's job server refuses this server's token: set RAY_AUTH_MODE and its token as on the head"
        )
    if "already" in lowered:
        return ApiProblem(409, "Ray has a job of this id already: choose another run_name", kind="exists")
    if "does not exist" in lowered or "status code 404" in lowered:
        return ApiProblem(
            404,
            "Ray does not know this job (its head restarted, or the job was deleted)",
            kind="unknown-to-ray",
        )
    log.error("Ray's job server refused: %s", message)
    return ray_down("Ray's job server failed on this request (the log of this server says why)")


def _training_jobs(client: Any) -> dict[str, RayJob]:
    """Return the training jobs by submission id."""
    details = [job for job in client.list_jobs() if job.submission_id and is_training(job.entrypoint)]
    return {job.submission_id: _ray_job(job) for job in details}


def _ray_job(details: Any) -> RayJob:
    return RayJob(
        submission_id=details.submission_id,
        status=str(getattr(details.status, "value", details.status)),
        entrypoint=details.entrypoint,
        message=details.message,
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        metadata={str(key): str(value) for key, value in (details.metadata or {}).items()},
    )


def job_server_address(given: str | None) -> str:
    """Return `given`, else $RAY_ADDRESS if it names a job server (http...), else the default
    address on this machine.
    """
    if given:
        return given
    from_environment = os.environ.get("RAY_ADDRESS", "")
    return from_environment if from_environment.startswith(("http://", "https://")) else JOB_SERVER
