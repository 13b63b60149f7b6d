"""The section `reward`: the function that scores a response, and the processes that run it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Union

from pydantic import Discriminator, Field, SerializeAsAny, field_validator, model_validator

from sppo_ray.config.plugin_types import or_plugin
from sppo_ray.settings import PositiveInt, Probability, Settings


class UnitReward(Settings):
    """A reward function of this package; its rewards lie in [0, 1]."""

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)


class MathReward(UnitReward):
    """Compares the final answer in \\boxed{} with the ground truth (rules: docs/rewards.md)."""

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


class CodeReward(UnitReward):
    """Runs the last Python block of the response against the row's unit tests, in a sandbox without
    network (docs/rewards.md).
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
                f"{given!r} is no import path: write it as package.module:function, without slashes or file "
                "names"
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


_Own = Union[MathReward, RunningSumReward, ReasoningGymReward, CodeReward, CustomReward, PickledReward]
RewardFunction = Annotated[
    _Own, Discriminator("type"), SerializeAsAny(), or_plugin("rewards", _Own, lambda name: PluginReward)
]


class RewardSettings(Settings):
    function: RewardFunction = MathReward()
    processes: PositiveInt = 1
    """Number of verifier processes; each can be killed and replaced independently."""
    deadline_s: Annotated[float, Field(gt=0)] = 10.0
    """When a sample takes longer, its process is replaced. The sample is wrong if its ground truth
    alone stays within the deadline (math, running-sum, reasoning-gym), else a reward error.
    """
    memory_mib: PositiveInt = 2048
    """Limit on the address-space growth of one process per sample."""
    max_error_rate: Probability = 0.1
    """The run stops when a larger share of a step's samples are reward errors."""
    cpus: Annotated[float, Field(gt=0)] = 1.0

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and highest reward that the function declares."""
        return self.function.range

    @model_validator(mode="after")
    def _range_is_one(self) -> RewardSettings:
        low, high = self.range
        if low >= high:
            raise ValueError(
                f"function.range is [{low}, {high}]: give the lowest reward first, then the highest"
            )
        return self

    @model_validator(mode="after")
    def _programs_end_first(self) -> RewardSettings:
        if isinstance(self.function, CodeReward) and self.function.timeout_s >= self.deadline_s:
            raise ValueError(
                f"function.timeout_s is {self.function.timeout_s:g} and deadline_s {self.deadline_s:g}: a "
                "program that hangs "
                "would count as an error and not as wrong, so set deadline_s to timeout_s and 2 s or more"
            )
        return self
