"""Checks a custom environment and tools by reading their source, without running it.

The REST server and `--dry-run` check so. Where a run starts, the environment is also built and an
episode begun (`launch.run_inputs`).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from sppo_ray.config.environment import CustomEnvironment, EnvironmentSettings, FunctionTool, ToolsEnvironment
from sppo_ray.environments.registry import no_step, other_parameters
from sppo_ray.environments.tools.functions import no_docstring, no_type, tool_name
from sppo_ray.rewards.user_code import find_definition, written_signature


def require_environment(settings: EnvironmentSettings | None) -> None:
    """Read the source of the user's environment or tools. Raises UserError for a module or a name
    that is not there, and for what cannot be an environment or a tool.
    """
    if isinstance(settings, CustomEnvironment):
        _require_class(settings)
    if isinstance(settings, ToolsEnvironment):
        for tool in settings.tools:
            if isinstance(tool, FunctionTool):
                _require_tool(tool)


def _require_class(settings: CustomEnvironment) -> None:
    what = f"environment.environment {settings.environment!r}"
    node = find_definition(settings.environment, what, None)
    if not isinstance(node, ast.ClassDef):
        if node is not None:
            _require_call(what, node.args, ("row", 0), settings.options)
        return
    if node.bases or node.keywords:  # a base class may have what is missing here
        return
    methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
    if "step" not in methods:
        raise no_step(what)
    if "__init__" in methods:
        _require_call(what, methods["__init__"].args, ("self", "row", 0), settings.options)
    elif "__new__" not in methods:
        raise other_parameters(what, TypeError("it has no __init__"))


def _require_call(
    what: str, takes: ast.arguments, given: tuple[Any, ...], options: Mapping[str, Any]
) -> None:
    try:
        written_signature(takes).bind(*given, **options)
    except TypeError as error:
        raise other_parameters(what, error) from None


def _require_tool(tool: FunctionTool) -> None:
    what = tool_name(tool)
    node = find_definition(tool.function, what, None)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    takes = node.args
    for one in [*takes.posonlyargs, *takes.args, *takes.kwonlyargs]:
        if one.annotation is None:
            raise no_type(what, one.arg)
    if not ast.get_docstring(node):
        raise no_docstring(what)
