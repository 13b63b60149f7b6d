"""Reward functions that run in confined verifier processes (`reward.function`)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from sppo_ray.settings import Settings


class UnitReward(Settings):
    """A reward function of this package; its rewards lie in [0, 1]."""

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)


class MathReward(UnitReward):
    """Compares the final answer in \\boxed{} with the ground truth (rules: docs/verifiers.md)."""

    type: Literal["math"] = "math"
    extract: Literal["boxed", "last"] = "boxed"
    """last: a response without a box is scored by the last answer it states ("the answer is ..."),
    else its last formula or number.
    """


class RunningSumReward(UnitReward):
    """Compares the final answer of the running sum, exactly."""

    type: Literal["running-sum"] = "running-sum"


class ReasoningGymReward(UnitReward):
    """The task's own verifier in reasoning-gym; where it evaluates answers, a grammar checks them
    first. `full_only` turns partial credit into 0.
    """

    type: Literal["reasoning-gym"] = "reasoning-gym"
    full_only: bool = True
    """1 for full credit, else 0. false: the task's own partial credit."""


class CodeReward(UnitReward):
    """Runs the last Python block of the response against the row's unit tests, in a sandbox without
    network (rules: docs/programs.md).
    """

    type: Literal["code"] = "code"
    timeout_s: Annotated[float, Field(gt=0)] = 8.0
    """Limit for all tests of a response together; a slower response scores 0. Must be less than
    reward.deadline_s, which counts errors.
    """
    memory_mib: Annotated[int, Field(ge=64)] = 512
    """Address space of a program, including 30 MiB of the interpreter."""
    full_only: bool = True
    """1 when every test passes, else 0. false: the share of tests that pass."""


class UserReward(Settings):
    """A function of the user's: what its process may do, and the rewards that it may return."""

    range: tuple[float, float] = (0.0, 1.0)
    """The declared range of the reward. A critic trained by binary cross-entropy (sppo; ppo with
    critic_loss bce) needs [0, 1].
    """
    confined: bool = True
    """true: the function can read the Python installation and the import path, but writes no file,
    opens no socket, starts no process and sees no keys in its environment. false removes these
    limits (except for the cluster's keys), e.g. for a judge behind a network.
    """
    isolate: bool = False
    """Use a new process for each sample. Set it when the function evaluates text of a response,
    because that text could change the function.
    """


class CustomReward(UserReward):
    """A function of your own: `def f(response: str, ground_truth: str, extra: dict) -> float`."""

    type: Literal["custom"] = "custom"
    function: str
    """Import path "package.module:function" of a module in the working directory or on your
    PYTHONPATH.
    """
    packages: tuple[str, ...] = ()
    """Installed packages that may contain the function; none by default. The standard library is
    never allowed.
    """

    @field_validator("function")
    @classmethod
    def _is_an_import_path(cls, given: str) -> str:
        module, separator, name = given.partition(":")
        if not separator or not all(part.isidentifier() for part in (*module.split("."), name)):
            raise ValueError(
                f"{given!r} is not an import path: write it as package.module:function, without slashes or "
                "file names"
            )
        return given


class PickledReward(UserReward):
    """A function without an import path, which `sppo_ray.train(reward=...)` wrote into the run
    directory.
    """

    type: Literal["pickled"] = "pickled"
    file: str
    """A file of cloudpickle, which all nodes can read. Reading it runs code."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the file; another one is refused."""


class PluginReward(UserReward):
    """A function of another package, by the name of its entry point in `sppo_ray.rewards`."""

    type: str
