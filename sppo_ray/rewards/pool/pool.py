"""Scoring untrusted responses in killable processes, each sample under a deadline.

    score() --> queue --> one task a process: take a batch, send it, read one reply a sample --> Verdict
                  ^                     |
                  '---- rest of the batch, when its process is killed, crashes or retires

A sample that hangs or crashes affects only itself and its process: the later samples of its batch
go back to the queue (after HEDGE_S already, so that an idle process can take them). With
`failure_is_wrong`, the ground truth is then tried alone in another process: if that fails too, the
sample is an error, else the answer scores 0. For other verifiers (code, a custom function) the
sample is an error. A sample that exceeded its deadline but got little processor time is first tried
again. A sample that may run code of its answer has a process to itself.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import asyncio
import logging
import pickle
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from sppo_ray.config import MathReward, RewardFunction, RewardSettings, UserReward
from sppo_ray.errors import UserError
from sppo_ray.rewards.extract import with_open_thinking, without_echo
from sppo_ray.rewards.pool.process import ChildDied, ProcessGone, Reply, VerifierProcess
from sppo_ray.rewards.reasoning_gym.evaluated import needs_own_process
from sppo_ray.types import ScoreRequest, Verdict

BATCH = 32
"""Samples in one message to a process: small enough to share a step between two processes, large
enough to hide the round trip.
"""
HEDGE_S = 0.1
"""When a sample takes longer, the next samples of its batch are also offered to other processes."""
_MAX_FAILED_STARTS = 3
# a process may have been killed from outside, so its sample is tried once more
_ATTEMPTS = 2
# share of the deadline: with less processor time, a late sample waited for the machine
_BUSY_SHARE = 0.5
_LOG_EVERY_S = 60.0
_logger = logging.getLogger(__name__)


class VerifierPoolFailed(RuntimeError):
    """The pool is closed, or its processes do not start: no sample will be scored."""


@dataclass(slots=True)
class PoolCounters:
    """Totals since the pool started."""

    scored: int = 0  # verdicts, including errors
    errors: int = 0  # verdicts without a reward
    timeouts: int = 0  # samples that exceeded their deadline, as errors or wrong
    restarts: int = 0  # processes replaced, except those used for a single sample
    # verdicts of 0 because the answer made the verifier fail, hang or crash
    wrong_by_failure: int = 0


@dataclass(slots=True, eq=False)
class _Job:
    request: ScoreRequest
    payload: bytes
    verdict: asyncio.Future[Verdict]
    is_alone: bool  # in its batch, and in its process
    attempts: int = 0  # processes that died while scoring it
    blamed: _Failure | None = None  # the payload then asks for the ground truth alone


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str  # when the answer caused the failure
    text: str


class VerifierPool:
    """`settings.processes` verifier processes with one queue. Used from one event loop, the one
    that first calls `score`.
    """

    def __init__(self, settings: RewardSettings) -> None:
        self.counters = PoolCounters()
        self._settings = settings
        self._queue: deque[_Job] = deque()
        self._work = asyncio.Event()
        self._ready = asyncio.Event()
        self._open: set[_Job] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None
        self._log_after = 0.0

    async def score(self, request: ScoreRequest) -> Verdict:
        """Score one response. Raises UserError when the verifier is unusable (a custom function
        that does not import, a reward outside its range) and VerifierPoolFailed when the pool is
        closed.
        """
        return (await self.score_all([request]))[0]

    async def score_all(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """The verdicts in the order of the requests. Raises as `score` does."""
        self._start()
        loop = asyncio.get_running_loop()
        jobs = [self._job(request, loop.create_future()) for request in requests]
        self._open.update(jobs)
        self._offer(jobs, front=False)
        try:
            return [await job.verdict for job in jobs]
        finally:
            self._open.difference_update(jobs)
            for job in jobs:
                _forget(job.verdict)

    def _job(self, request: ScoreRequest, verdict: asyncio.Future[Verdict]) -> _Job:
        function = self._settings.function
        payload = _payload(request, _response_of(request), function)
        return _Job(request, payload, verdict, needs_own_process(function, request.extra))

    async def ready(self) -> None:
        """Wait until a process can score. Raises as `score` does."""
        self._start()
        await self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def counts(self) -> Mapping[str, int]:
        """The counters by name."""
        return asdict(self.counters)

    async def close(self) -> None:
        """End every process; samples without a verdict raise VerifierPoolFailed."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail(VerifierPoolFailed("the verifier pool is closed"))

    # ---------------------------------------------------------------------------------- one process

    def _start(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._tasks:
            return
        self._tasks = [asyncio.create_task(self._serve()) for _ in range(self._settings.processes)]
        for task in self._tasks:
            task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        # A serving task ends only by cancellation; otherwise its samples would wait for ever.
        if not task.cancelled() and task.exception() is not None:
            self._fail(task.exception())

    async def _serve(self) -> None:
        while True:
            process = await self._start_process()
            self._ready.set()
            try:
                while True:
                    await self._run_batch(process, await self._take())
            except ProcessGone:
                self.counters.restarts += 1
            finally:
                await process.close()

    async def _start_process(self) -> VerifierProcess:
        for _ in range(_MAX_FAILED_STARTS):
            try:
                return await VerifierProcess.start(self._settings)
            except ProcessGone as error:
                cause = error
        raise VerifierPoolFailed(
            f"the verifier process did not start in {_MAX_FAILED_STARTS} attempts ({cause}): its own message "
            "is in "
            "this process's stderr"
        )

    async def _run_batch(self, process: VerifierProcess, jobs: list[_Job]) -> None:
        """Score a batch. Samples that a replaced child left unscored go back to the queue. Raises
        ProcessGone.
        """
        job, behind, started = jobs[0], jobs[1:], time.monotonic()
        # as sent: another process may change a hedged copy meanwhile
        blamed = [job.blamed for job in jobs]
        try:
            for index, job in enumerate(jobs):
                behind, started = jobs[index + 1 :], time.monotonic()
                reply = process.reply_at_hand() if index else None
                if reply is None:
                    async with asyncio.timeout(self._settings.deadline_s):
                        if index == 0:
                            await process.send([job.payload for job in jobs])
                        reply = await self._reply(process, behind)
                self._settle_reply(job, reply, blamed[index])
                if job.is_alone:
                    return await process.replace()
                if reply.retire:
                    self._replaced(behind)
                    return await process.retired()
                if time.monotonic() - started > HEDGE_S and self._taken_elsewhere(behind):
                    self._replaced(behind)
                    return await process.replace()
        except TimeoutError:
            if process.is_frozen:  # stopped by a signal from outside, not by the sample
                self._after_death(process, job, "frozen from outside", started)
                self._offer(behind)
                raise ProcessGone("frozen from outside") from None
            self._after_deadline(process, job, started)
            self._replaced(behind)
            await process.replace()
        except ChildDied as death:
            self._after_death(process, job, _describe_exit(death.exit_code), started)
            self._replaced(behind)
        except ProcessGone as gone:
            self._after_death(process, job, str(gone), started)
            self._offer(behind)
            raise

    def _taken_elsewhere(self, jobs: list[_Job]) -> bool:
        """Whether another process has started hedged jobs; scoring them here too could hang this
        process too.
        """
        return any(job.verdict.done() or job not in self._queue for job in jobs)

    def _replaced(self, unscored: list[_Job]) -> None:
        self.counters.restarts += 1
        self._offer(unscored)

    async def _reply(self, process: VerifierProcess, behind: list[_Job]) -> Reply:
        """Return the reply to the current sample. When it is slow, the next samples are offered to
        other processes too.
        """
        hedge = asyncio.get_running_loop().call_later(HEDGE_S, self._on_slow_sample, process, behind)
        try:
            return await process.reply()
        finally:
            hedge.cancel()

    def _on_slow_sample(self, process: VerifierProcess, behind: list[_Job]) -> None:
        process.mark_cpu()
        self._offer(behind)

    def _after_deadline(self, process: VerifierProcess, job: _Job, started: float) -> None:
        is_busy = process.cpu_since_mark() > _BUSY_SHARE * self._settings.deadline_s
        if process.failure_is_wrong and not is_busy and self._again(job):
            return
        self.counters.timeouts += not job.verdict.done()
        self._blame(
            process, job, _Failure("timeout", f"timeout after {self._settings.deadline_s:g} s"), started
        )

    def _after_death(self, process: VerifierProcess, job: _Job, how: str, started: float) -> None:
        if not self._again(job):
            self._blame(process, job, _Failure("crash", f"verifier process died ({how})"), started)

    def _again(self, job: _Job) -> bool:
        """Whether a sample is tried once more, because it may not have caused the failure."""
        job.attempts += 1
        if job.attempts < _ATTEMPTS:
            self._offer([job])
        return job.attempts < _ATTEMPTS

    def _blame(self, process: VerifierProcess, job: _Job, failure: _Failure, started: float) -> None:
        """Handle a failure that the sample caused: by its answer, if the ground truth alone does
        not fail.
        """
        if not process.failure_is_wrong:
            self._settle_error(job, failure.text, started)
        elif job.blamed is not None:
            self._settle_error(
                job, f"{job.blamed.text}, and {failure.text} with the ground truth alone", started
            )
        elif not job.verdict.done():
            job.payload, job.blamed, job.attempts = _payload(job.request, None, None), failure, 0
            self._offer([job])

    # ------------------------------------------------------------------------------ queue, verdicts

    async def _take(self) -> list[_Job]:
        """Take the next batch, a fair share of the queue, without jobs that another process has
        finished.
        """
        while True:
            share = -(-len(self._queue) // self._settings.processes)
            batch: list[_Job] = []
            while self._queue and len(batch) < min(BATCH, share):
                if batch and (batch[0].is_alone or self._queue[0].is_alone):
                    break
                job = self._queue.popleft()
                batch += [job] if not job.verdict.done() else []
            if batch:
                return batch
            if not self._queue:
                self._work.clear()
                await self._work.wait()

    def _offer(self, jobs: list[_Job], *, front: bool = True) -> None:
        jobs = [job for job in jobs if not job.verdict.done() and job not in self._queue] if front else jobs
        if front:
            self._queue.extendleft(reversed(jobs))
        else:
            self._queue.extend(jobs)
        if jobs:
            self._work.set()

    def _settle_reply(self, job: _Job, reply: Reply, blamed: _Failure | None) -> None:
        if reply.fatal is not None:
            if not job.verdict.done():
                job.verdict.set_exception(UserError(reply.fatal))
            return
        verdict = Verdict(reply.reward, reply.reason, reply.seconds, reply.answer)
        if blamed is not None and reply.reward is None:
            verdict = Verdict(
                None, f"error: {blamed.text}; the ground truth alone: {reply.reason}", reply.seconds
            )
        elif blamed is not None:
            verdict = Verdict(reply.reward, blamed.reason, self._settings.deadline_s, None)
        if (blamed is not None or reply.failed) and reply.reward is not None and not job.verdict.done():
            self.counters.wrong_by_failure += 1
            self._log_failure(verdict.reason)
        self._settle(job, verdict)

    def _log_failure(self, reason: str) -> None:
        if time.monotonic() >= self._log_after:
            self._log_after = time.monotonic() + _LOG_EVERY_S
            total = self.counters.wrong_by_failure
            _logger.warning("an answer made the verifier fail (%s) and scores 0; %d so far", reason, total)

    def _settle_error(self, job: _Job, what: str, started: float) -> None:
        self._settle(job, Verdict(None, f"error: {what}", time.monotonic() - started))

    def _settle(self, job: _Job, verdict: Verdict) -> None:
        if job.verdict.done():
            return  # a hedged copy was faster, or the caller was cancelled
        self.counters.scored += 1
        self.counters.errors += verdict.is_error
        job.verdict.set_result(verdict)

    def _fail(self, failure: BaseException) -> None:
        self._failure = self._failure or failure
        self._ready.set()
        for job in self._open:
            if not job.verdict.done():
                job.verdict.set_exception(self._failure)


def _forget(verdict: asyncio.Future[Verdict]) -> None:
    """Drop a verdict that is not awaited any more; asyncio would print its error."""
    if verdict.done() and not verdict.cancelled():
        verdict.exception()
    else:
        verdict.cancel()


def _response_of(request: ScoreRequest) -> str:
    """Prepare a response: remove copies of the prompt, and add an unclosed think tag of the
    prompt.
    """
    return with_open_thinking(without_echo(request.response, request.prompt), request.prompt)


def _payload(request: ScoreRequest, response: str | None, function: RewardFunction | None) -> bytes:
    """Build the payload. The math verifier checks whether the prompt asks for a percentage; users'
    functions may need prompt and data source, unless the row has fields of these names.
    """
    extra = request.extra
    if isinstance(function, MathReward):
        extra = {**extra, "prompt": request.prompt}
    elif isinstance(function, UserReward):
        extra = {"data_source": request.source, "prompt": request.prompt, **extra}
    return pickle.dumps((response, request.ground_truth, extra))


def _describe_exit(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"signal {-exit_code}, {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"signal {-exit_code}"
