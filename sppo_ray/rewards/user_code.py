"""Find a user's function or class by its import path, "package.module:name".

The module must lie in the working directory or on the PYTHONPATH. Otherwise a recipe could call any
code of the machine on text that the policy wrote (`timeit:timeit` would run it).
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import sppo_ray
from sppo_ray.errors import UserError

_PACKAGE = Path(sppo_ray.__file__).parent


def import_object(path: str, setting: str, packages: Sequence[str] | None = None) -> Any:
    """Import what "package.module:name" names, which must be callable. `setting` names it in
    messages. `packages`: installed ones that it may come from; None = none, and no setting to allow
    any. Raises UserError.
    """
    module_name, separator, attribute = path.partition(":")
    if not (module_name and separator and attribute):
        raise UserError(f"{setting}: write it as package.module:function")
    _require_confined(setting, module_name, packages)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # boundary: the module is the user's, and importing it may raise anything
        raise UserError(
            f"{setting}: module {module_name} cannot be imported ({type(error).__name__}: {error}): it must "
            "be on the "
            "Python path of every node (install it, or submit it with the job's working directory)"
        ) from None
    function = getattr(module, attribute, None)
    if not callable(function):
        what = "does not exist" if function is None else f"is a {type(function).__name__}, not a function"
        raise UserError(f"{setting}: {attribute} {what} in module {module_name}")
    return function


def find_definition(
    path: str, setting: str, packages: Sequence[str] | None
) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None:
    """Return the definition of "package.module:name" from the module's source, without running it;
    None where the source names it in another way (an import, a value, a decorated function).
    `setting` names it in messages; `packages` as of `import_object`. Raises UserError when the
    module is not there or its source does not name it.
    """
    module_name, _, attribute = path.partition(":")
    _require_confined(setting, module_name, packages)
    file = _source_of(module_name)
    if file is None:
        raise UserError(
            f"{setting}: no module {module_name} in the working directory or on the PYTHONPATH: correct the "
            "path, or start where the module is"
        )
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=file.name)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{setting}: {file} is no Python: {error}") from None
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = {getattr(node, "name", None) for node in tree.body}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {(one.asname or one.name).split(".")[0] for one in ast.walk(tree) if isinstance(one, ast.alias)}
    if attribute not in names and "*" not in names:
        defined = [node.name for node in tree.body if isinstance(node, kinds)]
        close = difflib.get_close_matches(attribute, defined, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it defines {', '.join(defined) or 'nothing'}"
        raise UserError(f"{setting}: {attribute} does not exist in module {module_name} ({file}): {hint}")
    found = [node for node in tree.body if isinstance(node, kinds) and node.name == attribute]
    return found[0] if len(found) == 1 and not found[0].decorator_list else None


def written_signature(takes: ast.arguments) -> inspect.Signature:
    """Return the signature of a definition that is not run; its defaults and hints are left out."""
    kind, none = inspect.Parameter, inspect.Parameter.empty
    positional = [*takes.posonlyargs, *takes.args]
    required = len(positional) - len(takes.defaults)
    parameters = [
        kind(
            one.arg,
            kind.POSITIONAL_ONLY if at < len(takes.posonlyargs) else kind.POSITIONAL_OR_KEYWORD,
            default=none if at < required else None,
        )
        for at, one in enumerate(positional)
    ]
    if takes.vararg is not None:
        parameters.append(kind(takes.vararg.arg, kind.VAR_POSITIONAL))
    for one, default in zip(takes.kwonlyargs, takes.kw_defaults, strict=True):
        parameters.append(kind(one.arg, kind.KEYWORD_ONLY, default=none if default is None else None))
    if takes.kwarg is not None:
        parameters.append(kind(takes.kwarg.arg, kind.VAR_KEYWORD))
    return inspect.Signature(parameters)


def _source_of(module_name: str) -> Path | None:
    """The source of a module, found without importing the packages that it is in."""
    places = [Path(entry or ".") for entry in (os.getcwd(), *sys.path)]
    if module_name.split(".")[0] == _PACKAGE.name:  # an editable installation is on no path
        places = [_PACKAGE.parent]
    for place in places:
        leaf = place.joinpath(*module_name.split("."))
        for file in (leaf.with_suffix(".py"), leaf / "__init__.py"):
            if file.is_file():
                return file
    return None


def _require_confined(setting: str, module_name: str, packages: Sequence[str] | None) -> None:
    """Check the module's location before anything is imported. A missing module is reported by the
    import.
    """
    top = module_name.partition(".")[0]
    if top == "sppo_ray":
        return
    if top in sys.stdlib_module_names:
        raise UserError(
            f"{setting}: {top} is of Python's standard library: write a function of your own round what it "
            "does"
        )
    root = next(
        (Path(entry or ".").resolve() for entry in sys.path if PathFinder.find_spec(top, [entry or "."])),
        None,
    )
    if root is None:
        return
    if root.name in ("site-packages", "dist-packages"):
        if packages is None:
            raise UserError(f"{setting}: {top} is an installed package: write a module that uses it")
        if top in packages:
            return
        raise UserError(
            f"{setting}: {top} is an installed package: name it in reward.function.packages ([{top}]) if it "
            "is to judge"
        )
    leaf = root.joinpath(*module_name.split("."))
    for place in (leaf.with_suffix(".py"), leaf, root / top):
        if place.exists() and not place.resolve().is_relative_to(root):
            raise UserError(
                f"{setting}: {place} is a link that leads to {place.resolve()}, outside the import path: "
                "copy the "
                f"module to {root}, or put its own directory on the PYTHONPATH"
            )
