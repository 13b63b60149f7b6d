"""An environment process: `python -m sppo_ray.environments.pool.worker PARENT_PID`.

Started by `sppo_ray.environments.pool.process` only.

    parent (pool) --stdin--> step or forget --> one task a step --stdout--> replies, in any order

It holds the episodes of its requests. A step of an episode that it does not hold (its last process
ended) first repeats the actions before it. Coroutine functions share the event loop; plain
functions run in threads. A custom environment is confined before the first request
(`sppo_ray.rewards.pool.confinement`).

In: the setup as a pickle, then frames: length, pickle of a `StepRequest` with its number, or of the
names of episodes that have ended. Out: a JSON line each, {"ready"} or {"fatal"} first. A request
without an action only begins its episode; the reply has the messages of `reset`. Torch and Ray are
never imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import pickle
import struct
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from sppo_ray.config.environment import EnvironmentSettings, ToolsEnvironment
from sppo_ray.environments.base import Environment, MakeEnvironment, Observation, StepRequest
from sppo_ray.environments.registry import build_environment, has_reset, uses_threads
from sppo_ray.environments.replies import BadReply, begin_alike, checked, encodable, first_messages
from sppo_ray.environments.tools.environment import list_tools
from sppo_ray.errors import UserError
from sppo_ray.rewards.base import Verifier
from sppo_ray.rewards.pool.confinement import confine_child, missing_walls
from sppo_ray.rewards.pool.worker import address_space_meter, die_with_parent, limit_memory, private_pipes

HEADER = struct.Struct("<q")
"""Header of a frame: its length."""
_THREADS = 48  # a confined process may have 64
_COROUTINES = 1 << 16
_REASON_CHARS = 200


class ConfinedLoop(asyncio.SelectorEventLoop):
    """An event loop whose threads wake it where seccomp allows neither `send` nor `recv`."""

    def _write_to_self(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake
            os.write(self._csock.fileno(), b"\0")

    def _read_from_self(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._ssock.fileno(), 4096)


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    requests, replies = private_pipes()
    setup = pickle.load(requests)
    settings = TypeAdapter(EnvironmentSettings).validate_python(setup["settings"])
    try:
        make = build_environment(settings)
        tools = list_tools(settings) if isinstance(settings, ToolsEnvironment) else None
        walls = _walls(settings)
        missing = missing_walls(walls)
    except UserError as error:
        _write(replies, {"fatal": str(error)})
        return
    address_space = address_space_meter()
    loop = ConfinedLoop()  # its socket pair could not be made later
    confine_child(walls, os.getppid())
    limit_memory(address_space(), settings.memory_mib)
    slots = _THREADS if uses_threads(make, settings) else _COROUTINES
    ready = {"ready": os.getpid(), "missing": missing, "tools": tools, "resets": has_reset(make)}
    _write(replies, ready | {"slots": slots})
    desk = _Desk(make, settings.deadline_s, replies)
    loop.set_default_executor(ThreadPoolExecutor(_THREADS))
    threading.Thread(target=_read, args=(requests, loop, desk), daemon=True).start()
    loop.run_forever()


def _walls(settings: EnvironmentSettings) -> Verifier:
    """The confinement that the settings ask for, in the terms of `rewards.pool.confinement`."""
    own = settings.runs_own_code
    return Verifier(settings.type, lambda *_: (0.0, ""), walls=settings.walls, reads_import_path=own)


def _read(requests: BinaryIO, loop: asyncio.AbstractEventLoop, desk: _Desk) -> None:
    """Pass frames to the event loop. The end of stdin ends the process."""
    while len(header := requests.read(HEADER.size)) == HEADER.size:
        (length,) = HEADER.unpack(header)
        loop.call_soon_threadsafe(desk.take, pickle.loads(requests.read(length)))
    os._exit(0)


class _Desk:
    """The episodes of this process."""

    def __init__(self, make: MakeEnvironment, deadline_s: float, replies: BinaryIO) -> None:
        self._make = make
        self._deadline_s = deadline_s
        self._replies = replies
        self._episodes: dict[str, tuple[Environment, int]] = {}  # with the number of actions
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, message: tuple[int, StepRequest] | list[str]) -> None:
        if isinstance(message, list):
            for episode in message:
                self._episodes.pop(episode, None)
            return
        task = asyncio.ensure_future(self._answer(*message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, request: StepRequest) -> None:
        started = time.perf_counter()
        observation, messages, error = Observation(), [], ""
        try:
            if request.actions:
                observation = await self._step(request)
            else:
                _, messages = await self._begin(request)
        except BadReply as bad:
            error = str(bad)
        except TimeoutError:
            error = f"no answer within {self._deadline_s:g} s"
        except Exception as failure:  # boundary: an environment may raise anything
            traceback.print_exc()
            error = encodable(f"{type(failure).__name__}: {str(failure)[:_REASON_CHARS]}")
        if error or observation.done:
            self._episodes.pop(request.episode, None)
        reply = {"number": number, "error": error, "seconds": time.perf_counter() - started}
        _write(self._replies, reply | {"observation": asdict(observation), "messages": messages})

    async def _step(self, request: StepRequest) -> Observation:
        """Take the last action; first those before it if this process has not taken them."""
        environment, taken = self._episodes.pop(request.episode, (None, 0))
        if environment is None or taken != len(request.actions) - 1:
            environment, messages = await self._begin(request)
            if messages and not begin_alike(messages, request.row.messages):
                raise BadReply(
                    "reset returned other messages than when the row was read: let row and seed alone "
                    "determine them"
                )
            taken = 0
        for action in request.actions[taken:]:
            observation = checked(await self._within(partial(environment.step, action)))
            taken += 1
        self._episodes[request.episode] = (environment, taken)
        return observation

    async def _begin(self, request: StepRequest) -> tuple[Environment, list[dict[str, str]]]:
        """Make an episode's environment; return it with its first messages, [] without `reset`."""
        row = request.row
        environment = await self._within(partial(self._make, row, request.seed))
        reset = getattr(environment, "reset", None)
        if callable(reset) != has_reset(self._make):
            raise BadReply(
                "its reset cannot be known before it is made: name the class in environment.environment, not "
                "a function that returns it"
            )
        if not callable(reset):
            return environment, []
        return environment, first_messages(await self._within(partial(reset, row.reset_seed)))

    async def _within(self, call: partial) -> Any:
        """Call a coroutine function, within the deadline, or a plain function in a thread. A thread
        cannot be ended: when it is late, the parent ends the process.
        """
        if inspect.iscoroutinefunction(call.func):
            return await asyncio.wait_for(call(), self._deadline_s)
        result = await asyncio.to_thread(call)
        return await asyncio.wait_for(result, self._deadline_s) if inspect.isawaitable(result) else result


def _write(pipe: BinaryIO, message: dict[str, Any]) -> None:
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


if __name__ == "__main__":
    main()
