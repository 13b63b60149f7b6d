"""One verifier process and its pipes, as used by the event loop that owns it.

Output on stdout is untrusted, because that process reads model output: a line that is not a reply
to the current batch is dropped. Messages on the control pipe are trusted, because they are written
before any model output is read.

A plain child process, not `multiprocessing`: inside a Ray actor, spawning would import Ray's worker
script again and forking would copy its threads' locks. `sppo_ray.rewards.pool.worker` defines the
protocol and runs in the process. Processes end with the thread that started them, the event loop's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import pickle
import secrets
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from typing import IO, Any

import psutil

from sppo_ray.config import RewardSettings
from sppo_ray.errors import UserError
from sppo_ray.rewards.pool.confinement import environment
from sppo_ray.rewards.pool.worker import HEADER, SECRET_BYTES

WORKER = "sppo_ray.rewards.pool.worker"
"""The module that a verifier process runs."""
START_DEADLINE_S = 120.0
"""Deadline for starting a process, including the import of its verifier."""
REPLACE_DEADLINE_S = 30.0
"""Deadline from the order to kill the scoring child until the next one is ready (a large child
takes time to free).
"""
_REAP_DEADLINE_S = 10.0
_TOGETHER_S = 0.002
"""For so long replies wait for each other."""
_MAX_LINE_BYTES = 1 << 20
_MAX_LINES = 1_000
_warned: set[str] = set()
_logger = logging.getLogger(__name__)


class ProcessGone(Exception):
    """The process closed its pipes or does not answer; start another."""


class ChildDied(Exception):
    """The scoring child ended during a batch; `exit_code` is negative for a signal. The process has
    forked another.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Reply:
    """The process's reply to one sample."""

    reward: float | None
    reason: str
    answer: str | None  # as the verifier reads it
    # a message that stops the run: a reward outside its range, a misconfigured function
    fatal: str | None
    retire: bool  # the child ends; the rest of its batch stays unscored
    seconds: float
    failed: bool  # the answer made the verifier fail, and the ground truth alone does not


class _Lines(asyncio.Protocol):
    """Reads lines of a pipe, and closes one that sends too much."""

    def __init__(self, changed: asyncio.Event) -> None:
        self.lines: deque[bytes] = deque()
        self.is_closed = False
        self._changed = changed
        self._rest = b""
        self._transport: asyncio.ReadTransport

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.lines.extend(line for line in lines if line)
        self._transport.pause_reading()  # short replies come together then: fewer turns of the loop
        asyncio.get_running_loop().call_later(_TOGETHER_S, self._resume)
        if len(self.lines) > _MAX_LINES or len(self._rest) > _MAX_LINE_BYTES:
            self._transport.close()
        self._changed.set()

    def _resume(self) -> None:
        if not self.is_closed and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        self._changed.set()


class VerifierProcess:
    """A verifier process. Call `start`, then `send` a batch and `reply` once per sample. Call
    `replace` when a sample takes too long.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.failure_is_wrong = False
        """Whether an answer that makes the verifier fail is wrong; known once the process is
        ready.
        """
        self._popen = popen
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._changed = asyncio.Event()
        self._replies, self._control = _Lines(self._changed), _Lines(self._changed)
        self._transports: list[asyncio.BaseTransport] = []
        self._writer: asyncio.StreamWriter
        self._generation = -1  # generation of the child that gets the next batch
        self._child = 0  # its process id
        self._batch = ""  # number of the current batch
        self._cpu_before = 0.0

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_frozen(self) -> bool:
        """Whether the process or its child is stopped by a signal (SIGSTOP, a debugger)."""
        try:
            keeper = psutil.Process(self._popen.pid)
            return any(process.status() == psutil.STATUS_STOPPED for process in [keeper, *keeper.children()])
        except psutil.NoSuchProcess:
            return False

    def mark_cpu(self) -> None:
        """Start counting `cpu_since_mark`."""
        self._cpu_before = self._cpu_s()

    def cpu_since_mark(self) -> float:
        """Processor seconds of the scoring child since the mark."""
        return self._cpu_s() - self._cpu_before

    def _cpu_s(self) -> float:
        try:
            times = psutil.Process(self._child).cpu_times()
        except psutil.NoSuchProcess:
            return self._cpu_before
        return times.user + times.system

    @classmethod
    async def start(cls, settings: RewardSettings) -> VerifierProcess:
        """Start a process and wait until it is ready.

        Raises UserError when its verifier cannot be built, and ProcessGone when it ends first or is
        not ready within START_DEADLINE_S.
        """
        reading, writing = os.pipe()
        control = os.fdopen(reading, "rb")
        with os.fdopen(writing, "wb"):  # the worker's end
            process = cls(
                subprocess.Popen(
                    [sys.executable, "-m", WORKER, str(os.getpid()), str(writing)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment(settings.function),
                    pass_fds=[writing],
                    start_new_session=True,  # Ctrl-C is for the driver
                )
            )
        try:
            await process._connect(control)
            setup = {
                "function": settings.function.model_dump(),
                "memory_mib": settings.memory_mib,
                "deadline_s": settings.deadline_s,
                "secret": process._secret,
            }
            await process._write(pickle.dumps(setup))
            await process._await_ready(START_DEADLINE_S)
        except BaseException:  # also on cancellation, so that no orphan is left; re-raised at once
            await process.close()
            raise
        return process

    async def send(self, payloads: list[bytes]) -> None:
        """Send a batch of pickled (response, ground_truth, extra). Raises ProcessGone."""
        self._batch = secrets.token_hex(8)
        frame = pickle.dumps((self._batch, payloads))
        await self._write(HEADER.pack(self._secret, self._generation, len(frame)) + frame)

    async def reply(self) -> Reply:
        """Return the next sample's reply, in the order of the batch. Raises ChildDied (another is
        ready) and ProcessGone.
        """
        while True:
            reply = self.reply_at_hand()
            if reply is not None:
                return reply
            if self._control.lines:
                raise ChildDied(await self._await_ready(REPLACE_DEADLINE_S))
            await self._await_change()

    def reply_at_hand(self) -> Reply | None:
        """The next sample's reply, where it has come in already."""
        while self._replies.lines:
            reply = _parsed(self._replies.lines.popleft(), self._batch)
            if reply is not None:
                return reply
        return None

    async def replace(self) -> None:
        """Kill the scoring child and wait for the next. Raises ProcessGone."""
        self._popen.send_signal(signal.SIGUSR1)
        await self._await_ready(REPLACE_DEADLINE_S)

    async def retired(self) -> None:
        """After a reply with `retire`: wait for the next child. Raises ProcessGone."""
        await self._await_ready(REPLACE_DEADLINE_S)

    async def close(self) -> None:
        """Kill the process and its child."""
        self._popen.kill()
        for transport in self._transports:
            transport.close()
        await asyncio.to_thread(self._popen.wait, _REAP_DEADLINE_S)

    async def _connect(self, control: IO[bytes]) -> None:
        loop = asyncio.get_running_loop()
        for pipe, lines in ((self._popen.stdout, self._replies), (control, self._control)):
            incoming, _ = await loop.connect_read_pipe(lambda lines=lines: lines, pipe)
            self._transports.append(incoming)
        outgoing, flow = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, self._popen.stdin)
        self._transports.append(outgoing)
        self._writer = asyncio.StreamWriter(outgoing, flow, None, loop)

    async def _await_ready(self, deadline_s: float) -> int:
        """Wait until a newer child is ready; return how the last one ended. Its remaining output is
        dropped.
        """
        try:
            async with asyncio.timeout(deadline_s):
                while (message := await self._told()).get("ready", -1) <= self._generation:
                    if "fatal" in message:
                        raise UserError(message["fatal"])
        except TimeoutError:
            raise ProcessGone(f"no verifier within {deadline_s:g} s") from None
        self._generation, self._child, self._cpu_before = message["ready"], message["pid"], 0.0
        self.failure_is_wrong = message["failure_is_wrong"]
        self._replies.lines.clear()
        _warn_once(message["missing"])
        return message["last_exit"]

    async def _told(self) -> dict[str, Any]:
        while not self._control.lines:
            await self._await_change()
        return json.loads(self._control.lines.popleft())

    async def _await_change(self) -> None:
        if self._control.is_closed or self._replies.is_closed:
            raise ProcessGone("its pipes are closed")
        self._changed.clear()
        await self._changed.wait()

    async def _write(self, message: bytes) -> None:
        try:
            self._writer.write(message)
            await self._writer.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise ProcessGone("its stdin is closed") from None


def _parsed(line: bytes, batch: str) -> Reply | None:
    """Parse a reply to `batch`; None for any other output."""
    try:
        message = json.loads(line)
        return Reply(**message) if message.pop("batch") == batch and _is_reply(message) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _is_reply(message: dict[str, Any]) -> bool:
    reward, texts = message["reward"], (message["answer"], message["fatal"])
    return (
        (reward is None or (type(reward) in (int, float) and math.isfinite(reward)))
        and isinstance(message["reason"], str)
        and all(isinstance(text, str | None) for text in texts)
        and type(message["seconds"]) is float
    )


def _warn_once(missing: str | None) -> None:
    if missing is not None and missing not in _warned:
        _warned.add(missing)
        _logger.warning("the processes that read answers are not fully confined here: %s", missing)
