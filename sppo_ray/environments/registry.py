"""Builds the environment that the settings choose (`environment.type`)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from sppo_ray.config.environment import (
    CustomEnvironment,
    EnvironmentSettings,
    GuessNumberEnvironment,
    ToolsEnvironment,
)
from sppo_ray.environments.base import MakeEnvironment
from sppo_ray.errors import UserError
from sppo_ray.rewards.user_code import import_object


def build_environment(settings: EnvironmentSettings) -> MakeEnvironment:
    """Build it, in the process that runs it. Raises UserError when that fails (e.g. an import
    path).
    """
    if isinstance(settings, ToolsEnvironment):
        from sppo_ray.environments.tools.environment import make_tools_environment

        return make_tools_environment(settings)
    if isinstance(settings, GuessNumberEnvironment):
        from sppo_ray.environments.guess_number import GuessNumber

        return GuessNumber
    return _custom(settings)


def has_reset(make: MakeEnvironment) -> bool:
    """Return whether the environments make their first messages. Of a function that returns an
    environment this cannot be known, so it is said to have none.
    """
    made = make.func if isinstance(make, partial) else make
    return callable(getattr(made, "reset", None))


def uses_threads(make: MakeEnvironment, settings: EnvironmentSettings) -> bool:
    """Return whether steps, or the tools they call, are plain functions, which run in threads."""
    if isinstance(settings, ToolsEnvironment):
        return any(not inspect.iscoroutinefunction(tool.call) for tool in make.keywords["tools"])
    made = make.func if isinstance(make, partial) else make
    return not inspect.iscoroutinefunction(getattr(made, "step", None))


def _custom(settings: CustomEnvironment) -> MakeEnvironment:
    what = f"environment.environment {settings.environment!r}"
    made = import_object(settings.environment, what)
    if isinstance(made, type) and not callable(getattr(made, "step", None)):
        raise no_step(what)
    _require_call(what, made, settings.options)
    return partial(made, **settings.options)


def _require_call(what: str, made: Any, options: Mapping[str, Any]) -> None:
    try:
        inspect.signature(made).bind("row", 0, **options)
    except TypeError as error:
        raise other_parameters(what, error) from None
    except ValueError:  # without a signature, as in C
        return


def no_step(what: str) -> UserError:
    return UserError(f"{what}: it has no method step(action): write one that returns an Observation")


def other_parameters(what: str, error: TypeError) -> UserError:
    return UserError(
        f"{what}: it is called with (row, seed) and environment.options, and does not take them ({error})"
    )
