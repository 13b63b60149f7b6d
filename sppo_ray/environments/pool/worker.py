"""An environment process: `python -m sppo_ray.environments.pool.worker PARENT_PID`.

Started by `sppo_ray.environments.pool.process` only.

    parent (pool) --stdin--> step or forget --> one task a step --stdout--> replies, in any order

It holds the episodes of its requests. A step of an episode that it does not hold (its last process
ended) first repeats the actions before it. Coroutine functions share the event loop; plain
functions run in threads. A custom environment is confined before the first request
(`sppo_ray.rewards.pool.confinement`).

In: the setup as a pickle, then frames: length, pickle of a `StepRequest` with its number, or of the
names of episodes that have ended. Out: a JSON line each, {"ready"} or {"fatal"} first. Torch and
Ray are never imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import math
import os
import pickle
import struct
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from sppo_ray.config.environment import EnvironmentSettings, ToolsEnvironment
from sppo_ray.environments.base import Environment, MakeEnvironment, Observation, StepRequest
from sppo_ray.environments.registry import build_environment
from sppo_ray.environments.tools.environment import list_tools
from sppo_ray.errors import UserError
from sppo_ray.rewards.base import Verifier
from sppo_ray.rewards.pool.confinement import confine_child, missing_walls
from sppo_ray.rewards.pool.worker import address_space_meter, die_with_parent, limit_memory, private_pipes

HEADER = struct.Struct("<q")
"""Header of a frame: its length."""
MAX_TEXT_CHARS = 65_536
"""A longer observation is an error of the environment."""
ROLES = ("user", "tool")
_THREADS = 48  # a confined process may have 64
_REASON_CHARS = 200


class ConfinedLoop(asyncio.SelectorEventLoop):
    """An event loop whose threads wake it where seccomp allows neither `send` nor `recv`."""

    def _write_to_self(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake
            os.write(self._csock.fileno(), b"\0")

    def _read_from_self(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._ssock.fileno(), 4096)


class BadObservation(Exception):
    """The environment returned what is no observation."""


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
    _write(replies, {"ready": os.getpid(), "missing": missing, "tools": tools})
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
        reply: dict[str, Any] = {"text": "", "reward": 0.0, "done": False, "reason": "", "role": "user"}
        error = ""
        try:
            observation = await self._step(request)
        except BadObservation as bad:
            error = str(bad)
        except TimeoutError:
            error = f"no answer within {self._deadline_s:g} s"
        except Exception as failure:  # boundary: an environment may raise anything
            traceback.print_exc()
            error = f"{type(failure).__name__}: {str(failure)[:_REASON_CHARS]}"
        else:
            reply = {name: getattr(observation, name) for name in reply}
        if error or reply["done"]:
            self._episodes.pop(request.episode, None)
        _write(
            self._replies,
            reply | {"number": number, "error": error, "seconds": time.perf_counter() - started},
        )

    async def _step(self, request: StepRequest) -> Observation:
        """Take the last action; first those before it if this process has not taken them."""
        environment, taken = self._episodes.pop(request.episode, (None, 0))
        if environment is None or taken != len(request.actions) - 1:
            environment, taken = await self._within(partial(self._make, request.row, request.seed)), 0
        for action in request.actions[taken:]:
            observation = checked(await self._within(partial(environment.step, action)))
            taken += 1
        self._episodes[request.episode] = (environment, taken)
        return observation

    async def _within(self, call: partial) -> Any:
        """Call a coroutine function, within the deadline, or a plain function in a thread. A thread
        cannot be ended: when it is late, the parent ends the process.
        """
        if inspect.iscoroutinefunction(call.func):
            return await asyncio.wait_for(call(), self._deadline_s)
        result = await asyncio.to_thread(call)
        return await asyncio.wait_for(result, self._deadline_s) if inspect.isawaitable(result) else result


def checked(given: Any) -> Observation:
    """Check what an environment returned. Raises BadObservation."""
    if not isinstance(given, Observation):
        raise BadObservation(f"step returned {type(given).__name__}: return an Observation")
    if not isinstance(given.text, str):
        raise BadObservation(f"the text of an observation is {type(given.text).__name__}: make it str")
    if len(given.text) > MAX_TEXT_CHARS:
        raise BadObservation(
            f"an observation has {len(given.text)} characters: return at most {MAX_TEXT_CHARS}"
        )
    if given.role not in ROLES:
        raise BadObservation(f"the role of an observation is {given.role!r:.40}: make it user or tool")
    if isinstance(given.reward, bool) or not isinstance(given.reward, int | float):
        raise BadObservation(f"the reward of an observation is {type(given.reward).__name__}: make it float")
    if not math.isfinite(given.reward):
        raise BadObservation(f"the reward of an observation is {given.reward}")
    reason = given.reason if isinstance(given.reason, str) else ""
    return Observation(given.text, float(given.reward), bool(given.done), reason[:_REASON_CHARS], given.role)


def _write(pipe: BinaryIO, message: dict[str, Any]) -> None:
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


if __name__ == "__main__":
    main()
