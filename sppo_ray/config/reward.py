"""The section `reward`: the function that judges a response, and the processes that run it."""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field, field_validator, model_validator

from sppo_ray.settings import PositiveInt, Probability, Settings


class MathReward(Settings):
    """Final answer in \\boxed{} compared by math-verify."""

    type: Literal["math"] = "math"


class RunningSumReward(Settings):
    """Exact final answer of the running sum."""

    type: Literal["running-sum"] = "running-sum"


class ReasoningGymReward(Settings):
    """The task's own verifier of reasoning-gym; `full_only` turns partial credit into 0."""

    type: Literal["reasoning-gym"] = "reasoning-gym"
    full_only: bool = True


class CodeReward(Settings):
    """The last Python block of the response against the row's unit tests, in a sandbox without network (docs/rewards.md)."""

    type: Literal["code"] = "code"
    timeout_s: Annotated[float, Field(gt=0)] = 8.0
    """For all tests of a response together; what takes longer scores 0. Less than reward.deadline_s, which counts errors."""
    memory_mib: Annotated[int, Field(ge=64)] = 512
    """Address space of a program, the interpreter's 30 MiB included."""
    full_only: bool = True
    """1 when every test passes, else 0. false: the share of tests that pass."""


class CustomReward(Settings):
    """A function of your own: `def f(response: str, ground_truth: str, extra: dict) -> float`."""

    type: Literal["custom"] = "custom"
    function: str
    """Import path "package.module:function" of a module in the working directory, or elsewhere on a PYTHONPATH of yours."""
    packages: tuple[str, ...] = ()
    """Installed packages that the function may come from; none by default, and never the standard library."""
    range: tuple[float, float] = (0.0, 1.0)
    """The declared range of the reward. A critic trained by binary cross-entropy (sppo; ppo with critic_loss bce) needs
    [0, 1]."""

    @field_validator("function")
    @classmethod
    def _is_an_import_path(cls, given: str) -> str:
        module, separator, name = given.partition(":")
        if not separator or not all(part.isidentifier() for part in (*module.split("."), name)):
            raise ValueError(f"{given!r} is no import path: write it as package.module:function, without slashes or file names")
        return given


RewardFunction = Annotated[
    Union[MathReward, RunningSumReward, ReasoningGymReward, CodeReward, CustomReward], Field(discriminator="type")
]


class RewardSettings(Settings):
    function: RewardFunction = MathReward()
    processes: PositiveInt = 1
    """Verifier processes; each can be killed and replaced without harm to the others."""
    deadline_s: Annotated[float, Field(gt=0)] = 10.0
    """A sample that takes longer is counted as a reward error and its process is replaced."""
    memory_mib: PositiveInt = 2048
    """Address-space growth that one process may use on a sample."""
    max_error_rate: Probability = 0.1
    """The run stops when more of a step's samples than this are reward errors."""
    cpus: Annotated[float, Field(gt=0)] = 1.0

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest reward that the function declares."""
        return getattr(self.function, "range", (0.0, 1.0))

    @model_validator(mode="after")
    def _range_is_one(self) -> RewardSettings:
        low, high = self.range
        if low >= high:
            raise ValueError(f"function.range is [{low}, {high}]: give the lowest reward first, then the highest")
        return self

    @model_validator(mode="after")
    def _programs_end_first(self) -> RewardSettings:
        if isinstance(self.function, CodeReward) and self.function.timeout_s >= self.deadline_s:
            raise ValueError(
                f"function.timeout_s is {self.function.timeout_s:g} and deadline_s {self.deadline_s:g}: a program that hangs "
                "would count as an error and not as wrong, so set deadline_s to timeout_s and 2 s or more"
            )
        return self
