"""The section `reward`: the function that scores a response, and the processes that run it."""

from __future__ import annotations

from typing import Annotated, Any, Union

from pydantic import Discriminator, Field, SerializeAsAny, model_validator

from sppo_ray.config.plugin_types import or_plugin
from sppo_ray.config.reward_models import JudgeReward, ModelReward
from sppo_ray.config.reward_parts import Leaf, ProductReward, RoutedReward, SumReward, leaves, watched
from sppo_ray.config.verifiers import CodeReward, MathReward, PluginReward
from sppo_ray.settings import PositiveInt, Probability, Settings

_Own = Union[Leaf, SumReward, ProductReward, RoutedReward]
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
    """The run stops when a larger share of a step's samples, or of the evaluation before the first
    step, are reward errors.
    """
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs that Ray reserves for the verifier processes together."""

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and highest reward that the function declares."""
        return self.function.range

    @property
    def leaves(self) -> tuple[tuple[str, Any], ...]:
        """The functions of one kind that it consists of, each with the path of its settings."""
        return tuple(leaves(self.function))

    @property
    def judges(self) -> tuple[JudgeReward, ...]:
        """The judges that the function asks, each once."""
        return tuple(dict.fromkeys(leaf for _, leaf in self.leaves if isinstance(leaf, JudgeReward)))

    @property
    def watched(self) -> tuple[str, ...]:
        """The parts of weight 0, which are only measured: NAME of the metric reward/NAME."""
        return tuple(watched(self.function))

    @property
    def longest_s(self) -> float:
        """The longest time until a sample has its verdict or is an error."""
        return max([self.deadline_s, *(judge.deadline_s for judge in self.judges)])

    @property
    def models(self) -> tuple[ModelReward, ...]:
        """The reward models that the function asks, each once."""
        return tuple(dict.fromkeys(leaf for _, leaf in self.leaves if isinstance(leaf, ModelReward)))

    @property
    def logical_cpus(self) -> float:
        return self.cpus + sum(model.replicas * model.cpus_per_replica for model in self.models)

    @property
    def logical_gpus(self) -> float:
        return sum(model.replicas * model.gpus_per_replica for model in self.models)

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
        for path, leaf in self.leaves:
            if isinstance(leaf, CodeReward) and leaf.timeout_s >= self.deadline_s:
                raise ValueError(
                    f"{path.removeprefix('reward.')}.timeout_s is {leaf.timeout_s:g} and deadline_s "
                    f"{self.deadline_s:g}: a program that hangs would count as an error and not as wrong, so "
                    "set deadline_s to timeout_s and 2 s or more"
                )
        return self
