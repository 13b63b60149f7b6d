"""The environment `tools`: carries out the calls of an action and gives their results back.

An action without a call is the answer: the episode ends, and reward.function scores that action. A
call that cannot be carried out (an unknown tool, wrong arguments, a program that fails) is answered
with `error: ...`, so that the policy can correct it. A tool that raises anything else is an error
of the episode. Calls in the policy's thinking are not carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from sppo_ray.config.environment import ToolsEnvironment
from sppo_ray.environments.base import MakeEnvironment, Observation, Row
from sppo_ray.environments.tools.calls import FORMATS, Call, ReadCalls
from sppo_ray.environments.tools.functions import ToolFailed, ToolFunction, tool_of
from sppo_ray.rewards.extract import with_open_thinking, without_thinking


class Tools:
    """One episode."""

    def __init__(
        self, row: Row, seed: int, *, tools: Sequence[ToolFunction], read: ReadCalls, role: str, most: int
    ) -> None:
        self._prompt = row.prompt
        self._tools = {tool.name: tool for tool in tools}
        self._read = read
        self._role = role
        self._most = most

    async def step(self, action: str) -> Observation:
        """Carry out the calls of an action, one after the other."""
        said = without_thinking(with_open_thinking(action, self._prompt))
        calls = self._read(said, tuple(self._tools))
        if not calls:
            return Observation(done=True, reason="answered")
        spent = dict.fromkeys(self._tools, 0.0)  # seconds of this action
        results = [await self._result(call, spent) for call in calls]
        return Observation("\n".join(results), reason="called", role=self._role)

    async def _result(self, call: Call, spent: dict[str, float]) -> str:
        try:
            if call.problem:
                raise ToolFailed(call.problem)
            tool = self._tools.get(call.name)
            if tool is None:
                known = ", ".join(self._tools)
                raise ToolFailed(f"there is no tool {call.name[:40]!r}; there is: {known}")
            text = _shown(await _called(tool, tool.arguments(call.arguments), spent))
        except ToolFailed as failure:
            text = f"error: {failure}"
        return text if len(text) <= self._most else f"{text[: self._most]}... ({len(text)} characters)"


async def _called(tool: ToolFunction, arguments: dict[str, Any], spent: dict[str, float]) -> Any:
    if inspect.iscoroutinefunction(tool.call):
        return await tool.call(**arguments)
    call = partial(tool.call, **arguments)
    if tool.timeout_s is not None:
        call = partial(_timed, tool, arguments, spent)
    running = asyncio.ensure_future(asyncio.to_thread(call))
    # A thread cannot be ended. So the step does not end before it, and when it is late the pool
    # replaces the process, else threads that hang would be used up one by one.
    while not running.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(running)
    return running.result()


def _timed(tool: ToolFunction, arguments: dict[str, Any], spent: dict[str, float]) -> Any:
    """Call a tool in what its earlier calls in this action left of its time."""
    left = tool.timeout_s - spent[tool.name]
    if left <= 0.0:
        raise ToolFailed(f"the calls before took the {tool.timeout_s:g} s of this action")
    begun = time.monotonic()
    try:
        return tool.call(**arguments, seconds=left)
    finally:
        spent[tool.name] += time.monotonic() - begun


def _shown(result: Any) -> str:
    return result if isinstance(result, str) else repr(result)


def make_tools_environment(settings: ToolsEnvironment) -> MakeEnvironment:
    """Build the environment. Raises UserError for a tool that cannot be built."""
    tools = [tool_of(one) for one in settings.tools]
    role = "user" if settings.format == "tagged" else "tool"
    read = FORMATS[settings.format]
    return partial(Tools, tools=tools, read=read, role=role, most=settings.max_output_chars)


def list_tools(settings: ToolsEnvironment) -> str | list[dict[str, Any]]:
    """Return the tools for a prompt: their schemas for the chat template, or for the tagged format
    their description. Raises UserError for a tool that cannot be built.
    """
    tools = [tool_of(one) for one in settings.tools]
    if settings.format != "tagged":
        return [tool.schema() for tool in tools]
    lines = [
        f"<{tool.name}>{next(iter(tool.parameters), '')}</{tool.name}>: {tool.description}" for tool in tools
    ]
    return "\n".join(["You can use tools. Write one call, then wait for its result:", *lines])
