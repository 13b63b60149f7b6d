"""Tools that a policy can call: their schema, and their call.

A function of your own becomes a tool by its type hints (str, int, float, bool, and lists or dicts
of anything) and the first line of its docstring. Arguments are checked against the schema, so the
function sees only what it asks for.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sppo_ray.config.environment import CalculatorTool, FunctionTool, PythonTool, Tool
from sppo_ray.environments.tools.calculator import CannotCalculate, calculate
from sppo_ray.errors import UserError
from sppo_ray.rewards.user_code import import_object

JSON_TYPES: dict[type, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
}


class ToolFailed(Exception):
    """The tool cannot do what the policy asks; the message is for the policy."""


@dataclass(frozen=True, slots=True)
class ToolFunction:
    """A tool as the environment calls it."""

    name: str
    description: str
    parameters: Mapping[str, type]
    # keyword arguments -> a result, or a coroutine of one; with `timeout_s` also `seconds`, what is
    # left of it
    call: Callable[..., Any]
    optional: frozenset[str] = field(default_factory=frozenset)
    timeout_s: float | None = None  # of all its calls in one action; None = the environment's deadline

    def schema(self) -> dict[str, Any]:
        """Return the schema that chat templates take in their list of tools."""
        properties = {name: {"type": JSON_TYPES[kind]} for name, kind in self.parameters.items()}
        required = [name for name in self.parameters if name not in self.optional]
        parameters = {"type": "object", "properties": properties, "required": required}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": parameters},
        }

    def arguments(self, given: Mapping[str, Any] | str) -> dict[str, Any]:
        """Check the arguments of a call. A text is the value of a tool's only parameter. Raises
        ToolFailed.
        """
        if isinstance(given, str):
            if len(self.parameters) != 1:
                raise ToolFailed(f"{self.name} has {len(self.parameters)} parameters: {self._signature()}")
            given = {next(iter(self.parameters)): self._read(given)}
        # null is the default of a parameter that has one
        given = {k: value for k, value in given.items() if value is not None or k not in self.optional}
        missing = [name for name in self.parameters if name not in given and name not in self.optional]
        unknown = [name for name in given if name not in self.parameters]
        if missing or unknown:
            what = f"lacks {missing[0]}" if missing else f"has no parameter {unknown[0][:40]}"
            raise ToolFailed(f"the call {what}: {self._signature()}")
        return {name: self._checked(name, value) for name, value in given.items()}

    def _read(self, text: str) -> Any:
        """The value of a text between tags; truth values, lists and objects as in JSON."""
        kind = next(iter(self.parameters.values()))
        if kind is str:
            return text
        try:
            return kind(text) if kind in (int, float) else json.loads(text)
        except (ValueError, RecursionError):
            raise ToolFailed(f"{text[:40]!r} is no {JSON_TYPES[kind]}") from None

    def _checked(self, name: str, value: Any) -> Any:
        kind = self.parameters[name]
        if kind is float and type(value) is int and abs(value) < 2**1000:  # larger ones are no float
            return float(value)
        if type(value) is not kind:
            raise ToolFailed(f"{name} is no {JSON_TYPES[kind]}: {self._signature()}")
        return value

    def _signature(self) -> str:
        return f"{self.name}({', '.join(f'{name}: {JSON_TYPES[k]}' for name, k in self.parameters.items())})"


def tool_of(settings: Tool) -> ToolFunction:
    """Build a tool. Raises UserError when a function has no schema or its module does not import,
    or when this machine lacks the sandbox.
    """
    if isinstance(settings, CalculatorTool):
        says = "Calculate an arithmetic expression, for example 12*(3+4)."
        return ToolFunction(settings.name, says, {"expression": str}, _calculate)
    if isinstance(settings, PythonTool):
        return _python(settings)
    return function_tool(settings)


def function_tool(settings: FunctionTool) -> ToolFunction:
    """Build a tool from a function. Raises UserError."""
    what = tool_name(settings)
    function = import_object(settings.function, what)
    try:
        hints = typing.get_type_hints(function)
        signature = inspect.signature(function)
    except (TypeError, ValueError, NameError) as error:
        raise UserError(f"{what}: its signature cannot be read ({error}): write a plain function") from None
    kinds: dict[str, type] = {}
    for name, parameter in signature.parameters.items():
        kind = _plain(hints.get(name))
        if kind is None or parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            raise no_type(what, name)
        kinds[name] = kind
    says = (inspect.getdoc(function) or "").strip().partition("\n\n")[0].replace("\n", " ")
    if not says:
        raise no_docstring(what)
    parameters = signature.parameters.items()
    optional = frozenset(name for name, p in parameters if p.default is not inspect.Parameter.empty)
    return ToolFunction(settings.name, says, kinds, function, optional)


def tool_name(settings: FunctionTool) -> str:
    """Name a function in messages."""
    return f"environment.tools: function {settings.function!r}"


def no_type(what: str, parameter: str) -> UserError:
    return UserError(
        f"{what}: parameter {parameter} has no type that a schema can state: annotate it with one of str, "
        "int, float, bool, list, dict"
    )


def no_docstring(what: str) -> UserError:
    return UserError(f"{what}: it has no docstring, which tells the policy what it does: write one")


def _plain(hint: Any) -> type | None:
    """The type of a hint: list of `list[int]`, str of `str | None`."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        rest = [one for one in typing.get_args(hint) if one is not type(None)]
        return _plain(rest[0]) if len(rest) == 1 else None
    kind = origin or hint
    return kind if kind in JSON_TYPES else None


def _calculate(expression: str) -> str:
    try:
        return calculate(expression)
    except CannotCalculate as error:
        raise ToolFailed(str(error)) from None


def _python(settings: PythonTool) -> ToolFunction:
    from sppo_ray.rewards.code.sandbox.run import ConfinedProcesses

    sandbox = ConfinedProcesses()
    sandbox.check()
    says = "Run a Python program and return what it prints."
    call = partial(_run, sandbox, settings)
    return ToolFunction(settings.name, says, {"code": str}, call, timeout_s=settings.timeout_s)


def _run(sandbox: Any, settings: PythonTool, code: str, seconds: float) -> str:
    from sppo_ray.rewards.code.base import Limits

    ran = sandbox.run_script(code, "", Limits(seconds, settings.memory_mib))
    if ran.status == "ok":
        return ran.stdout
    what = f"no result within {seconds:.3g} s" if ran.status == "timeout" else "the program failed"
    raise ToolFailed(f"{what}\n{ran.stdout}" if ran.stdout else what)
