"""One environment process and its pipes, as used by the event loop that owns it."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from typing import Any

from sppo_ray.config.environment import EnvironmentSettings
from sppo_ray.environments.base import Observation, StepRequest, StepResult
from sppo_ray.environments.pool.worker import HEADER
from sppo_ray.environments.replies import BadReply, checked, encodable, first_messages
from sppo_ray.errors import UserError
from sppo_ray.rewards.pool.confinement import variables

WORKER = "sppo_ray.environments.pool.worker"
"""The module that an environment process runs."""
START_DEADLINE_S = 120.0
_REAP_DEADLINE_S = 10.0
_MAX_LINE_BYTES = 1 << 20


class ProcessGone(Exception):
    """The process ended, or was ended: what it held is repeated in another."""


class EnvironmentProcess:
    """Takes steps of many episodes at the same time. Create it with `start`."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._waiting: dict[int, asyncio.Future[StepResult]] = {}
        self._number = 0
        self._writer: asyncio.StreamWriter
        self._reader: asyncio.StreamReader
        self._transports: list[asyncio.BaseTransport] = []
        self._reading: asyncio.Task[None] | None = None
        self.is_gone = False
        self.episodes: set[str] = set()  # that it holds
        self.tools: str | list[dict[str, Any]] | None = None  # what a prompt says of them; None without any
        self.resets = False  # whether its environments make their first messages
        self.slots = asyncio.Semaphore()  # steps that it can take at a time

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def load(self) -> int:
        """Steps under way."""
        return len(self._waiting)

    @classmethod
    async def start(cls, settings: EnvironmentSettings) -> EnvironmentProcess:
        """Start a process and wait until it is ready. Raises UserError when its environment cannot
        be built, and ProcessGone.
        """
        process = cls(
            subprocess.Popen(
                [sys.executable, "-m", WORKER, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=variables(is_unconfined=settings.walls == "none" and settings.runs_own_code),
                start_new_session=True,  # Ctrl-C is for the driver
            )
        )
        try:
            await process._connect()
            process._writer.write(pickle.dumps({"settings": settings.model_dump()}))
            async with asyncio.timeout(START_DEADLINE_S):
                first = await process._message()
        except TimeoutError:
            await process.close("was not ready in time")
            raise ProcessGone(f"was not ready within {START_DEADLINE_S:g} s") from None
        except BaseException:  # also on cancellation, so that no orphan is left; re-raised at once
            await process.close("did not start")
            raise
        if "fatal" in first:
            await process.close("did not start")
            raise UserError(first["fatal"])
        process.tools, process.resets = first["tools"], first["resets"]
        process.slots = asyncio.Semaphore(first["slots"])
        process._reading = asyncio.create_task(process._read())
        return process

    async def step(self, request: StepRequest) -> StepResult:
        """Take a step. Raises ProcessGone."""
        if self.is_gone:
            raise ProcessGone("has ended")
        self._number += 1
        number = self._number
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        self.episodes.add(request.episode)
        try:
            self._send((number, request))
            return await answer
        finally:
            self._waiting.pop(number, None)

    def forget(self, episodes: list[str]) -> None:
        """Drop episodes that have ended."""
        held = [episode for episode in episodes if episode in self.episodes]
        self.episodes.difference_update(held)
        if held and not self.is_gone:
            self._send(held)

    async def close(self, why: str = "was closed") -> None:
        """Kill the process. Steps under way raise ProcessGone(why)."""
        self.is_gone = True
        self._popen.kill()
        if self._reading is not None:
            self._reading.cancel()
        for transport in self._transports:
            transport.close()
        self._fail(why)
        await asyncio.to_thread(self._popen.wait, _REAP_DEADLINE_S)

    def _fail(self, why: str) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ProcessGone(why))

    def _send(self, message: Any) -> None:
        frame = pickle.dumps(message)
        self._writer.write(HEADER.pack(len(frame)) + frame)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._reader = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
        incoming, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._reader), self._popen.stdout
        )
        outgoing, flow = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, self._popen.stdin)
        self._transports = [incoming, outgoing]
        self._writer = asyncio.StreamWriter(outgoing, flow, None, loop)

    async def _message(self) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise ProcessGone("ended")
        return json.loads(line)

    async def _read(self) -> None:
        """Give each reply to its step. What is no reply to a step under way is dropped, because a
        process that reads model output may write anything.
        """
        why = "ended"
        try:
            while True:
                self._settle(await self._message())
        except ProcessGone:
            pass
        except (ValueError, KeyError, TypeError, BadReply):  # ValueError: also a line over the limit
            why = "wrote what is no reply"
            self._popen.kill()
        self.is_gone = True
        self._fail(why)

    def _settle(self, reply: dict[str, Any]) -> None:
        answer = self._waiting.get(reply["number"])
        if answer is None or answer.done():
            return
        observation = checked(Observation(**reply["observation"]))
        messages = first_messages(reply["messages"]) if reply["messages"] else ()
        error = encodable(str(reply["error"]))
        answer.set_result(StepResult(observation, float(reply["seconds"]), error, tuple(messages)))
