"""Scoring untrusted responses in killable processes, each sample under a deadline.

    score() --> queue --> one task a process: take a batch, send it, read one reply a sample --> Verdict
                  ^                     |
                  '---- rest of the batch, when its process is killed, crashes or retires

A sample that hangs or crashes its process costs that process and itself, nothing else: the samples behind it in the
batch go back to the queue (already after HEDGE_S, so that an idle process takes them at once). Its verdict is an
error, never a reward of 0.
"""

from __future__ import annotations

import asyncio
import pickle
import signal
import time
from collections import deque
from dataclasses import dataclass

from sppo_ray.config import RewardSettings
from sppo_ray.errors import UserError
from sppo_ray.rewards.extract import without_echo
from sppo_ray.rewards.process import ChildDied, ProcessGone, Reply, VerifierProcess
from sppo_ray.types import ScoreRequest, Verdict

BATCH = 32
"""Samples in one message to a process: few enough that two processes share a step, enough to hide the round trip."""
HEDGE_S = 0.1
"""When a sample takes longer, those behind it are offered to the other processes as well."""
_MAX_FAILED_STARTS = 3
_ATTEMPTS = 2  # a process that dies may have been killed from outside: its sample is tried once more


class VerifierPoolFailed(RuntimeError):
    """The pool is closed, or its processes do not start: no sample will be scored."""


@dataclass(slots=True)
class PoolCounters:
    """Totals since the pool started."""

    scored: int = 0  # verdicts given, errors included
    errors: int = 0  # verdicts without a reward
    timeouts: int = 0  # of these, samples over their deadline
    restarts: int = 0  # processes replaced


@dataclass(slots=True, eq=False)
class _Job:
    payload: bytes
    verdict: asyncio.Future[Verdict]
    attempts: int = 0  # processes that died with it in hand


class VerifierPool:
    """`settings.processes` verifier processes behind one queue. Used from one event loop, which `score` binds."""

    def __init__(self, settings: RewardSettings) -> None:
        self.counters = PoolCounters()
        self._settings = settings
        self._queue: deque[_Job] = deque()
        self._work = asyncio.Event()
        self._ready = asyncio.Event()
        self._open: set[_Job] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None

    async def score(self, request: ScoreRequest) -> Verdict:
        """The verdict on one response.

        Raises UserError when the verifier is unusable (a custom function that does not import, a reward outside its
        range) and VerifierPoolFailed when the pool is closed.
        """
        self._start()
        response = without_echo(request.response, request.prompt)
        payload = pickle.dumps((response, request.ground_truth, request.extra))
        job = _Job(payload, asyncio.get_running_loop().create_future())
        self._open.add(job)
        self._offer([job], front=False)
        try:
            return await job.verdict
        finally:
            self._open.discard(job)

    async def ready(self) -> None:
        """Wait until a process can score. Raises as `score` does."""
        self._start()
        await self._ready.wait()
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """End every process; samples without a verdict get VerifierPoolFailed."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail(VerifierPoolFailed("the verifier pool is closed"))

    # ------------------------------------------------------------------------------------------------ one process

    def _start(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._tasks:
            return
        self._tasks = [asyncio.create_task(self._serve()) for _ in range(self._settings.processes)]
        for task in self._tasks:
            task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        # A serving task ends by cancellation alone; anything else would leave its samples waiting for ever.
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
            f"the verifier process did not start in {_MAX_FAILED_STARTS} attempts ({cause}): its own message is in "
            "this process's stderr"
        )

    async def _run_batch(self, process: VerifierProcess, jobs: list[_Job]) -> None:
        """Score a batch. What a replaced child leaves unscored is offered again. Raises ProcessGone."""
        job, behind, started = jobs[0], jobs[1:], time.monotonic()
        try:
            for index, job in enumerate(jobs):
                behind, started = jobs[index + 1 :], time.monotonic()
                async with asyncio.timeout(self._settings.deadline_s):
                    if index == 0:
                        await process.send([job.payload for job in jobs])
                    reply = await self._reply(process, behind)
                self._settle_reply(job, reply)
                if reply.retire:
                    self._replaced(behind)
                    return await process.retired()
                if time.monotonic() - started > HEDGE_S and self._taken_elsewhere(behind):
                    self._replaced(behind)
                    return await process.replace()
        except TimeoutError:
            if process.is_frozen:  # by whoever sent the signal: that says nothing about the sample
                self._after_death(job, "frozen from outside", started)
                self._offer(behind)
                raise ProcessGone("frozen from outside") from None
            self.counters.timeouts += not job.verdict.done()
            self._settle_error(job, f"timeout after {self._settings.deadline_s:g} s", started)
            self._replaced(behind)
            await process.replace()
        except ChildDied as death:
            self._after_death(job, _describe_exit(death.exit_code), started)
            self._replaced(behind)
        except ProcessGone as gone:
            self._after_death(job, str(gone), started)
            self._offer(behind)
            raise

    def _taken_elsewhere(self, jobs: list[_Job]) -> bool:
        """Whether another process has begun on hedged jobs: scoring them here as well might hang here as well."""
        return any(job.verdict.done() or job not in self._queue for job in jobs)

    def _replaced(self, unscored: list[_Job]) -> None:
        self.counters.restarts += 1
        self._offer(unscored)

    async def _reply(self, process: VerifierProcess, behind: list[_Job]) -> Reply:
        """The reply to the sample in hand; when it is slow, those behind it are offered to the other processes too."""
        hedge = asyncio.get_running_loop().call_later(HEDGE_S, self._offer, behind)
        try:
            return await process.reply()
        finally:
            hedge.cancel()

    def _after_death(self, job: _Job, how: str, started: float) -> None:
        job.attempts += 1
        if job.attempts < _ATTEMPTS:
            self._offer([job])
        else:
            self._settle_error(job, f"verifier process died ({how})", started)

    # -------------------------------------------------------------------------------------------- queue, verdicts

    async def _take(self) -> list[_Job]:
        """The next batch, a fair share of the queue; jobs that another process has settled meanwhile are left out."""
        while True:
            share = -(-len(self._queue) // self._settings.processes)
            batch = [self._queue.popleft() for _ in range(min(BATCH, share))]
            batch = [job for job in batch if not job.verdict.done()]
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

    def _settle_reply(self, job: _Job, reply: Reply) -> None:
        if reply.fatal is not None:
            if not job.verdict.done():
                job.verdict.set_exception(UserError(reply.fatal))
            return
        self._settle(job, Verdict(reply.reward, reply.reason, reply.seconds, reply.answer))

    def _settle_error(self, job: _Job, what: str, started: float) -> None:
        self._settle(job, Verdict(None, f"error: {what}", time.monotonic() - started))

    def _settle(self, job: _Job, verdict: Verdict) -> None:
        if job.verdict.done():
            return  # a hedged copy was faster, or nobody waits any more
        self.counters.scored += 1
        self.counters.errors += verdict.is_error
        job.verdict.set_result(verdict)

    def _fail(self, failure: BaseException) -> None:
        self._failure = self._failure or failure
        self._ready.set()
        for job in self._open:
            if not job.verdict.done():
                job.verdict.set_exception(self._failure)


def _describe_exit(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"signal {-exit_code}, {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"signal {-exit_code}"
