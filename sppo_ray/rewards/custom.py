"""Load a user's reward function by import path: `def f(response, ground_truth, extra) -> float`.

Functions written for other systems are recognised by the names of their parameters and called as
there, one response at a time:

    verl       solution_str, and any of data_source, ground_truth, extra_info
    TRL        completions (a list of one text), and any of prompts and columns of the row, as lists
    OpenRLHF   queries (a list of one text: prompt and response), and any of prompts, labels

A function `answer(response: str) -> str | None` in the same module returns the answer for maj@k;
the default is the last box or answer tag.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from sppo_ray.errors import UserError
from sppo_ray.rewards.base import AnswerFunction, VerifierFunction
from sppo_ray.rewards.extract import final_answer
from sppo_ray.rewards.user_code import find_definition, import_object, written_signature


def load_custom_verifier(path: str, packages: Sequence[str] = ()) -> VerifierFunction:
    """Load the function at "package.module:function" as a verifier; it may come from the installed
    `packages`. Raises UserError when the path is malformed, leads outside, does not import or names
    nothing callable; the verifier raises UserError when the function does not return a number.
    """
    function = import_object(path, f"reward.function.function {path!r}", packages)
    return verifier_of(function, path)


def verifier_of(function: Any, path: str) -> VerifierFunction:
    """Return a function of the user's as a verifier; messages call it `path`. Raises UserError for
    one that cannot be called with (response, ground_truth, extra), nor as another system does.
    """
    if not callable(function):
        raise UserError(f"reward.function {path}: is a {type(function).__name__}, not a function")
    call = _as_called_here(function, path)

    def verify(response: str, ground_truth: str, extra: Mapping[str, Any]) -> tuple[float, str]:
        reward = call(response, ground_truth, dict(extra))
        reward = reward.item() if isinstance(reward, np.generic) else reward
        if not isinstance(reward, Real):
            raise UserError(
                f"reward.function.function {path} returned {type(reward).__name__} where a number is due: "
                "return a float"
            )
        return float(reward), _reason(float(reward))

    return verify


def _as_called_here(function: Callable[..., Any], path: str) -> Callable[[str, str, dict[str, Any]], Any]:
    """Return the function with the parameters (response, ground_truth, extra). Raises UserError for
    one that cannot be called so.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a function in C
        return function
    for mark, arguments in _CONVENTIONS.items():
        if mark in parameters:
            return partial(_call_by_name, function, parameters, arguments)
    try:
        inspect.signature(function).bind("", "", {})
    except TypeError:
        raise _misfit(path, parameters) from None
    return function


def _misfit(path: str, parameters: Iterable[str]) -> UserError:
    return UserError(
        f"reward.function.function {path}: it takes ({', '.join(parameters)}), and is called with "
        "(response, ground_truth, extra): give it these parameters; functions for verl, TRL and OpenRLHF "
        "are known by solution_str, completions and queries"
    )


def _call_by_name(
    function: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    arguments: Callable[[str, str, dict[str, Any]], dict[str, Any]],
    response: str,
    ground_truth: str,
    extra: dict[str, Any],
) -> Any:
    reward = function(**_taken(arguments(response, ground_truth, extra), parameters))
    if isinstance(reward, dict):  # verl's score, OpenRLHF's rewards
        reward = reward.get("score", reward.get("rewards"))
    return _single(reward)


def _as_in_verl(response: str, ground_truth: str, extra: dict[str, Any]) -> dict[str, Any]:
    row = {"data_source": extra.get("data_source"), "extra_info": extra}
    return row | {"solution_str": response, "ground_truth": ground_truth}


def _as_in_trl(response: str, ground_truth: str, extra: dict[str, Any]) -> dict[str, Any]:
    columns = {"solution": ground_truth, "answer": ground_truth} | extra | {"ground_truth": ground_truth}
    texts = {"prompts": extra.get("prompt", ""), "completions": response}
    return {name: [value] for name, value in (columns | texts).items()}


def _as_in_openrlhf(response: str, ground_truth: str, extra: dict[str, Any]) -> dict[str, Any]:
    prompt = extra.get("prompt", "")
    return {"queries": [prompt + response], "prompts": [prompt], "labels": [ground_truth]}


_CONVENTIONS = {
    "solution_str": _as_in_verl,
    "completions": _as_in_trl,
    "queries": _as_in_openrlhf,
}
"""The arguments of another system's reward function, by a parameter that only it has."""


def _taken(known: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the arguments that a function has parameters for: all if it takes `**kwargs`."""
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return dict(known)
    return {name: value for name, value in known.items() if name in parameters}


def _single(rewards: Any) -> Any:
    """Return the one reward of a list, array or tensor."""
    rewards = rewards.tolist() if hasattr(rewards, "tolist") else rewards
    is_one = isinstance(rewards, (list, tuple)) and len(rewards) == 1
    return rewards[0] if is_one else rewards


def require_function(path: str, packages: Sequence[str] = ()) -> None:
    """Find the module and read its source, without running it. Raises UserError when the module is
    not there, when its source does not name the function, or when that takes other parameters.
    """
    node = find_definition(path, f"reward.function.function {path!r}", packages)
    if isinstance(node, ast.FunctionDef):
        signature = written_signature(node.args)
        if not _CONVENTIONS.keys().isdisjoint(signature.parameters):
            return
        try:
            signature.bind("", "", {})
        except TypeError:
            raise _misfit(path, signature.parameters) from None


def load_custom_answer(path: str) -> AnswerFunction:
    """Load `answer` from the module of "package.module:function"; the default is the last box or
    answer tag. `path` has passed `load_custom_verifier`. The returned function raises UserError
    when the user's function returns neither text nor None.
    """
    function = getattr(importlib.import_module(path.partition(":")[0]), "answer", None)
    if not callable(function):
        return final_answer

    def answer(response: str) -> str | None:
        found = function(response)
        if not isinstance(found, str | None):
            raise UserError(
                f"reward.function.function {path}: answer() beside it returned {type(found).__name__} where "
                "the text of an "
                "answer, or None, is due: return str(...), or rename that function if it is something else"
            )
        return found

    return answer


def _reason(reward: float) -> str:
    if reward == 1.0:
        return "correct"
    return "wrong" if reward == 0.0 else "partial"
