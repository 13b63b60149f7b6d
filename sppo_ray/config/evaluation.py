"""The settings of `sppo-ray eval` and `map`: the parts of a run's settings that they use, under the
same names.

Like `sppo_ray.config` this imports neither torch nor Ray.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sppo_ray.config import (
    ClusterSettings,
    DataSettings,
    DataSource,
    EnvironmentSettings,
    RewardSettings,
    RolloutSettings,
    WeightSyncSettings,
)
from sppo_ray.config.checks import check_engine_device, check_environment, check_reward_models, reward_range
from sppo_ray.config.data import CriticSuffix
from sppo_ray.settings import PositiveInt, Settings


class EvaluationData(Settings):
    held_out: tuple[DataSource, ...]
    max_prompt_tokens: PositiveInt | None = None
    """null = the model's context minus the response."""
    overlong_prompts: Literal["refuse", "drop"] = "refuse"
    """When a prompt does not fit: refuse = stop and name it; drop = leave it out and count it.
    Prompts are never cut.
    """
    system_prompt: str | None = None
    prompt_suffix: str | None = None
    critic_suffix: CriticSuffix | None = None
    """Used by `sppo-ray calibrate`, for the critic."""

    @model_validator(mode="after")
    def _names_a_source(self) -> EvaluationData:
        if not self.held_out:
            raise ValueError("held_out names no data source: give one with --data")
        return self


class EvaluationSampling(Settings):
    samples_per_prompt: PositiveInt | None = None
    """k of avg@k, pass@k and maj@k. null = 1, or the number of times that a file repeats each
    prompt.
    """
    pass_k: tuple[PositiveInt, ...] = ()
    """The j of pass@j; empty = 1, 2, 4, ... and k."""
    prompts: PositiveInt | None = None
    """Use only the first N prompts of each source; null = all."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """0 = greedy; null = rollout.temperature."""

    @model_validator(mode="after")
    def _pass_k_has_samples(self) -> EvaluationSampling:
        most = max(self.pass_k, default=1)
        if self.samples_per_prompt is not None and most > self.samples_per_prompt:
            raise ValueError(
                f"pass@{most} needs at least {most} samples a prompt, and samples_per_prompt is "
                f"{self.samples_per_prompt}: "
                f"raise it (-k {most}), or take {most} out of --pass-k"
            )
        return self


class EvaluationConfig(Settings):
    model: str
    """A Transformers checkpoint directory, or `builtin:NAME`."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: EvaluationData
    eval: EvaluationSampling = EvaluationSampling()
    rollout: RolloutSettings = RolloutSettings()
    reward: RewardSettings = RewardSettings()
    environment: EnvironmentSettings | None = None
    cluster: ClusterSettings = ClusterSettings()

    @property
    def reward_range(self) -> tuple[float, float]:
        """The lowest and highest reward of a response or an episode."""
        return reward_range(self.reward, self.environment)

    @property
    def weight_sync(self) -> WeightSyncSettings:
        """The defaults of a run. Engines that serve one checkpoint never sync."""
        return WeightSyncSettings()

    @property
    def temperature(self) -> float:
        return self.rollout.temperature if self.eval.temperature is None else self.eval.temperature

    def logical_cpus(self) -> float:
        environment = 0.0 if self.environment is None else self.environment.cpus
        engines = self.rollout.workers * self.rollout.cpus_per_worker
        return round(engines + self.reward.logical_cpus + environment, 4)

    def logical_gpus(self) -> float:
        return round(self.rollout.workers * self.rollout.gpus_per_worker + self.reward.logical_gpus, 4)

    @model_validator(mode="after")
    def _possible_together(self) -> EvaluationConfig:
        samples = self.eval.samples_per_prompt
        if self.temperature == 0 and samples is not None and samples > 1:
            raise ValueError(
                f"at temperature 0 the {samples} samples of a prompt are one and the same response: set "
                "samples_per_prompt to 1 "
                "(-k 1), or the temperature above 0"
            )
        foreign = [source for source in self.data.held_out if source.type != "reasoning-gym"]
        if self.reward.function.type == "reasoning-gym" and foreign:
            raise ValueError(
                "reward.function reasoning-gym judges only data of type reasoning-gym, and data.held_out "
                f"has {foreign[0].type}: "
                "evaluate them separately, each with its own --reward"
            )
        check_engine_device(self.device, self.rollout, {})
        check_environment(self.environment, sources=self.data.held_out, rollout=self.rollout)
        check_reward_models(self.device, self.reward, self.rollout)
        return self


class MapSettings(Settings):
    """Settings of `sppo-ray map`."""

    data: DataSettings
    device: Literal["cpu", "cuda"] = "cpu"
