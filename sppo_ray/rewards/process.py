"""One verifier process and its pipes, seen from the event loop that owns it.

A plain child process, not `multiprocessing`: inside a Ray actor, spawning would import Ray's worker script again and
forking would copy its threads' locks. What runs in it, and the protocol, is in `sppo_ray.rewards.worker`. Processes
end with the thread that started them, which is the event loop's.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import psutil

from sppo_ray.config import RewardSettings
from sppo_ray.errors import UserError

START_DEADLINE_S = 120.0
"""From the start of the process until its verifier is imported and warm."""
REPLACE_DEADLINE_S = 30.0
"""From the order to kill the scoring child until the next one is there (a fork; a large child takes time to free)."""
_REAP_DEADLINE_S = 10.0
_KEYS_OF_THE_CLUSTER = ("RAY_AUTH_TOKEN", "SPPO_RAY_API_TOKENS", "SPPO_RAY_API_TOKEN")
"""Model output is read there: neither Ray's nor the REST server's tokens are within its reach."""
_MAX_LINE_BYTES = 1 << 20


class ProcessGone(Exception):
    """The whole process closed its pipes or does not answer: start another."""


class ChildDied(Exception):
    """The scoring child ended during a batch; `exit_code` is negative for a signal. The process has forked another."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Reply:
    """What the process says of one sample."""

    reward: float | None
    reason: str
    answer: str | None  # as the verifier reads it
    fatal: str | None  # a message that stops the run: a reward outside its range, a misconfigured function
    retire: bool  # the child is used up and ends; the rest of its batch stays unscored
    seconds: float


class VerifierProcess:
    """Started by `start`; then `send` a batch and `reply` once a sample. `replace` when a sample takes too long."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._reader: asyncio.StreamReader
        self._transports: list[asyncio.BaseTransport] = []
        self._writer: asyncio.StreamWriter
        self._generation = -1  # of the child that the next batch is meant for

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_frozen(self) -> bool:
        """Whether it, or its child, is stopped by a signal (SIGSTOP, a debugger)."""
        try:
            keeper = psutil.Process(self._popen.pid)
            return any(process.status() == psutil.STATUS_STOPPED for process in [keeper, *keeper.children()])
        except psutil.NoSuchProcess:
            return False

    @classmethod
    async def start(cls, settings: RewardSettings) -> VerifierProcess:
        """Start a process and wait until it is ready.

        Raises UserError when its verifier cannot be built, and ProcessGone when it ends first or is not ready within
        START_DEADLINE_S.
        """
        process = cls(
            subprocess.Popen(
                [sys.executable, "-m", "sppo_ray.rewards.worker", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is the driver's business
            )
        )
        try:
            await process._connect()
            await process._write({"function": settings.function.model_dump(), "memory_mib": settings.memory_mib})
            await process._await_ready(START_DEADLINE_S)
        except BaseException:  # also when cancelled: no orphan; raised again at once
            await process.close()
            raise
        return process

    async def send(self, payloads: list[bytes]) -> None:
        """Hand over a batch of pickled (response, ground_truth, extra). Raises ProcessGone."""
        await self._write((self._generation, payloads))

    async def reply(self) -> Reply:
        """The next sample's reply, in the order of the batch. Raises ChildDied (another is ready) and ProcessGone."""
        message = await self._read()
        if "died" in message:
            await self._await_ready(REPLACE_DEADLINE_S)
            raise ChildDied(message["died"])
        return Reply(**message)

    async def replace(self) -> None:
        """Kill the scoring child and wait for the next. Raises ProcessGone."""
        self._popen.send_signal(signal.SIGUSR1)
        await self._await_ready(REPLACE_DEADLINE_S)

    async def retired(self) -> None:
        """After a reply with `retire`: wait for the next child. Raises ProcessGone."""
        await self._await_ready(REPLACE_DEADLINE_S)

    async def close(self) -> None:
        """End the process and its child, whatever they do."""
        self._popen.kill()
        for transport in self._transports:
            transport.close()
        await asyncio.to_thread(self._popen.wait, _REAP_DEADLINE_S)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._reader = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
        incoming, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self._reader), self._popen.stdout)
        self._transports.append(incoming)
        outgoing, flow = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, self._popen.stdin)
        self._transports.append(outgoing)
        self._writer = asyncio.StreamWriter(outgoing, flow, None, loop)

    async def _await_ready(self, deadline_s: float) -> None:
        """Read on until a newer child is ready; late replies of the old one are dropped."""
        try:
            async with asyncio.timeout(deadline_s):
                while (message := await self._read()).get("ready", -1) <= self._generation:
                    if self._generation < 0 and "fatal" in message:
                        raise UserError(message["fatal"])
        except TimeoutError:
            raise ProcessGone(f"no verifier within {deadline_s:g} s") from None
        self._generation = message["ready"]

    async def _write(self, message: Any) -> None:
        try:
            self._writer.write(pickle.dumps(message))
            await self._writer.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise ProcessGone("its stdin is closed") from None

    async def _read(self) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise ProcessGone("its stdout is closed")
        return json.loads(line)


def _environment() -> dict[str, str]:
    """This process's without the cluster's keys, and with its import path: a custom reward function is found there wherever the
    actor found it. A key that such a function needs (of a judge's service) stays."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    kept = {name: value for name, value in os.environ.items() if name not in _KEYS_OF_THE_CLUSTER}
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
