"""How a policy writes a call of a tool, and how its result is given back.

    tagged   <calculator>12*34</calculator>                  a tool of one argument; plain text
    hermes   <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>      Qwen, Hermes
    llama    {"name": "add", "parameters": {"a": 1}}                            Llama 3.1 and later

An action has no call (then it is the answer), one, or with hermes several. What looks like a call
and cannot be read is told to the policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_CALLS = 8
"""Calls of one action; further ones are refused."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call as written. `problem` says why it cannot be carried out; else it is empty."""

    name: str
    arguments: Mapping[str, Any] | str  # tagged: the text between the tags
    problem: str = ""


def tagged_calls(action: str, names: Sequence[str]) -> list[Call]:
    """Read the first `<name>...</name>` whose name is among `names`, the names of the tools."""
    opened = [(at, name) for name in names if (at := action.find(f"<{name}>")) >= 0]
    if not opened:
        return []
    at, name = min(opened)
    text, closed, _ = action[at + len(name) + 2 :].partition(f"</{name}>")
    return [Call(name, text, "" if closed else f"the call has no </{name}>")]


_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def hermes_calls(action: str, names: Sequence[str]) -> list[Call]:
    """Read every `<tool_call>` of an action; `names` are not needed."""
    found = [_from_json(text, "arguments") for text in _HERMES.findall(action)]
    refused = f"only {MAX_CALLS} calls are carried out"
    return found[:MAX_CALLS] + [Call(call.name, {}, refused) for call in found[MAX_CALLS:]]


_LLAMA = re.compile(r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"')


def llama_calls(action: str, names: Sequence[str]) -> list[Call]:
    """Read an action that is one JSON object with a name, optionally after <|python_tag|>, or with
    "type": "function" before the name.
    """
    text = action.strip().removeprefix("<|python_tag|>").strip()
    return [_from_json(text, "parameters")] if _LLAMA.match(text) else []


def _from_json(text: str, key: str) -> Call:
    try:
        written = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Call("", {}, f"the call is no JSON ({str(error)[:80]})")
    if not isinstance(written, dict) or not isinstance(written.get("name"), str):
        return Call("", {}, f'the call is no object with "name" and "{key}"')
    arguments = written.get(key, {})
    if not isinstance(arguments, dict):
        return Call(written["name"], {}, f'"{key}" is no object')
    return Call(written["name"], arguments)


ReadCalls = Callable[[str, Sequence[str]], list[Call]]
FORMATS: dict[str, ReadCalls] = {"tagged": tagged_calls, "hermes": hermes_calls, "llama": llama_calls}
