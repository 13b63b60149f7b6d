"""Permissions of settings: whose reward functions, environments and tools they may run, and whether
these may run unconfined.

Settings cannot grant permissions to themselves. The command line grants them (`--allow-module`,
`--allow-unconfined`, or the setting itself, typed there), or the flags of the REST server. Resume
needs the same permissions as the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from sppo_ray.config import (
    CustomReward,
    EnvironmentSettings,
    JudgeReward,
    PickledReward,
    RewardSettings,
    UserReward,
)
from sppo_ray.config.environment import CustomEnvironment, ToolsEnvironment
from sppo_ray.config.reward_parts import leaves
from sppo_ray.errors import UserError

# reward functions of this package; its other names need permission
OWN_FUNCTIONS = ("sppo_ray.rewards.last_number:reward", "sppo_ray.environments.vowels:reward")
_FLAGS = {
    "module": "--allow-module",
    "package": "--allow-module",
    "pickle": "--allow-module",
    "unconfined": "--allow-unconfined",
    "network": "--allow-unconfined",
}
_RUN_FILES = ("job.json", "status.json", "submission.json", "run.lock", "metrics.jsonl", "compare.json")


@dataclass(frozen=True, slots=True)
class Permission:
    """A permission that settings ask for."""

    kind: Literal["module", "package", "pickle", "unconfined", "network"]
    # the module, package or plugin whose code it is; the SHA-256 of a pickle; of "network" the
    # judge's host, with its port
    name: str
    setting: str  # the setting that asks for it

    @property
    def flag(self) -> str:
        return _FLAGS[self.kind]

    def __str__(self) -> str:
        return {
            "module": f"code of module {self.name[:100]!r}",
            "package": f"code of the installed package {self.name[:100]!r}",
            "pickle": f"the code in the pickle of sha256 {self.name[:100]}",
            "unconfined": f"network, files and environment for {self.name[:100]!r}",
            "network": f"requests to {self.name[:100]!r} with prompts, responses and the judge's key",
        }[self.kind]


@dataclass(frozen=True, slots=True)
class Grants:
    """The granted permissions: names of modules, each including its submodules; in `unconfined`
    also the hosts of judges.
    """

    modules: tuple[str, ...] = ()
    unconfined: tuple[str, ...] = ()

    def allows(self, asked: Permission) -> bool:
        if asked.kind == "network":
            return asked.name in self.unconfined
        if asked.kind == "unconfined":
            return _is_within(asked.name, self.unconfined)
        inner = asked.kind == "package" and any(
            module.partition(".")[0] == asked.name for module in self.modules
        )
        return inner or _is_within(asked.name, self.modules)

    @property
    def flags(self) -> list[str]:
        """Return the command-line flags that grant the same."""
        return [f"--allow-module={name}" for name in self.modules] + [
            f"--allow-unconfined={name}" for name in self.unconfined
        ]


class RunsCode(Protocol):
    """Settings of a run or of an evaluation."""

    @property
    def reward(self) -> RewardSettings: ...
    @property
    def environment(self) -> EnvironmentSettings | None: ...


def asks_for(
    reward: RewardSettings, environment: EnvironmentSettings | None = None
) -> list[Permission]:
    """Return the permissions that these settings need; empty for code of this package."""
    return [*_asked_by_reward(reward), *_asked_by_environment(environment)]


def _asked_by_environment(environment: EnvironmentSettings | None) -> list[Permission]:
    if isinstance(environment, CustomEnvironment):
        paths = {"environment.environment": environment.environment}
    elif isinstance(environment, ToolsEnvironment):
        paths = {
            f"environment.tools.{index}.function": tool.function
            for index, tool in enumerate(environment.tools)
            if tool.type == "function"
        }
    else:
        return []
    modules = {setting: path.partition(":")[0] for setting, path in paths.items()}
    asked = [Permission("module", module, setting) for setting, module in modules.items()]
    if environment.walls == "none":
        asked += [
            Permission("unconfined", module, "environment.confined") for module in modules.values()
        ]
    return asked


def _asked_by_reward(reward: RewardSettings) -> list[Permission]:
    return [asked for path, leaf in leaves(reward.function) for asked in _asks_for(path, leaf)]


def _asks_for(path: str, function: Any) -> list[Permission]:
    if isinstance(function, JudgeReward):
        return [Permission("network", function.host, f"{path}.url")]
    if not isinstance(function, UserReward):
        return []
    code, asked = _code_of(path, function)
    if not function.confined:
        asked.append(Permission("unconfined", code, f"{path}.confined"))
    return asked


def _code_of(path: str, function: UserReward) -> tuple[str, list[Permission]]:
    """Return the name of the code and the permissions to run it. A plugin needs none:
    installing its package made it a reward function.
    """
    if isinstance(function, PickledReward):
        return function.sha256, [Permission("pickle", function.sha256, f"{path}.file")]
    if not isinstance(function, CustomReward):
        return function.type, []
    module = function.function.partition(":")[0]
    own = function.function in OWN_FUNCTIONS
    asked = [] if own else [Permission("module", module, f"{path}.function")]
    return module, asked + [
        Permission("package", package, f"{path}.packages") for package in function.packages
    ]


def flags_for(asked: Iterable[Permission]) -> list[str]:
    """Return the command-line flags that grant it."""
    return list(dict.fromkeys(f"{one.flag}={one.name}" for one in asked))


def require_own(config: RunsCode, granted: Grants, typed: Sequence[str], origin: str) -> None:
    """Check the permissions of a file that the user names. A module of the working directory is the
    user's own; all other code needs a flag. `typed` settings, which stand on the command line, are
    granted. Raises UserError naming the flag.
    """
    asked = asks_for(config.reward, config.environment)
    _require((one for one in asked if one.kind != "module"), granted, typed, origin)


def require_all(config: RunsCode, granted: Grants, typed: Sequence[str], origin: str) -> None:
    """Check the permissions of settings of unknown origin: of a run directory or a critic's card.
    Raises UserError naming the flag.
    """
    _require(asks_for(config.reward, config.environment), granted, typed, origin)


def require_for_file(config: RunsCode, granted: Grants, typed: Sequence[str], file: str) -> None:
    """Call `require_all` for a file of a run directory, `require_own` for any other file; a shipped
    recipe needs nothing.
    """
    if Path(file).suffix in (".yaml", ".yml"):
        folder = Path(file).resolve().parent
        is_of_run = any((place / name).exists() for place in (folder, folder.parent) for name in _RUN_FILES)
        (require_all if is_of_run else require_own)(config, granted, typed, file)


def settings_in(overrides: Iterable[str]) -> list[str]:
    """Return the names of the settings that `--a.b=c` overrides set."""
    return [override.removeprefix("--").partition("=")[0] for override in overrides]


def _require(asked: Iterable[Permission], granted: Grants, typed: Sequence[str], origin: str) -> None:
    missing = [one for one in asked if not granted.allows(one) and not _is_typed(one.setting, typed)]
    if missing:
        flags = " ".join(flags_for(missing))
        raise UserError(
            f"{origin}: {missing[0].setting} asks for {missing[0]}, and settings cannot grant that to "
            "themselves: read that "
            f"code, then add {flags}; or choose another reward function or environment"
        )


def _is_typed(setting: str, typed: Sequence[str]) -> bool:
    return any(setting == name or setting.startswith(f"{name}.") for name in typed)


def _is_within(name: str, allowed: Iterable[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)
