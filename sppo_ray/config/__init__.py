"""The settings of a run: a frozen pydantic tree, read from a YAML recipe and `--a.b=c` overrides.

    run: RunConfig --+-- algorithm, data, reward,               the section of that name
                     |   environment, guardrails
                     +-- models: learner, critic, reference     a section checks itself;
                     +-- rollout: rollout, weight_sync          what two cannot have together:
                                                                checks
                     +-- loop: loop, eval, checkpoint
                     '-- operations: recovery, logging, cluster

It imports neither torch nor Ray, so a typo is reported in milliseconds. The error for an unknown
key names the nearest valid key; the error for an impossible setting says what to change. All batch
sizes are in SAMPLES over all ranks (one response = one sample).
"""

from __future__ import annotations

from sppo_ray.algorithms.sppo import SPPOSettings
from sppo_ray.config.algorithm import Algorithm
from sppo_ray.config.data import (
    CurriculumSettings,
    DataSettings,
    DataSource,
    EnvironmentData,
    GuessNumberData,
    HFData,
    HFDiskData,
    JsonlData,
    ParquetData,
    ProductData,
    ReasoningGymData,
    RegisterMachineData,
    RunningSumData,
    SourceSettings,
    VowelsData,
)
from sppo_ray.config.environment import EnvironmentSettings
from sppo_ray.config.guardrails import GuardrailSettings
from sppo_ray.config.loop import CheckpointSettings, EvalSettings, LoopSettings
from sppo_ray.config.models import (
    CriticSettings,
    LearnerSettings,
    LoraSettings,
    ModelSettings,
    OptimizerSettings,
    ReferenceSettings,
)
from sppo_ray.config.operations import ClusterSettings, LoggingSettings, RecoverySettings
from sppo_ray.config.reward import RewardFunction, RewardSettings
from sppo_ray.config.reward_models import AffineTransform, JudgeReward, ModelReward, SigmoidTransform
from sppo_ray.config.reward_parts import ProductReward, RoutedReward, SumReward
from sppo_ray.config.rollout import AutoscaleSettings, RolloutSettings, WeightSyncSettings
from sppo_ray.config.run import RunConfig
from sppo_ray.config.verifiers import (
    CodeReward,
    CustomReward,
    MathReward,
    PickledReward,
    PluginReward,
    ReasoningGymReward,
    RunningSumReward,
    UserReward,
)

__all__ = [
    "AffineTransform",
    "Algorithm",
    "AutoscaleSettings",
    "CheckpointSettings",
    "ClusterSettings",
    "CodeReward",
    "CriticSettings",
    "CurriculumSettings",
    "CustomReward",
    "DataSettings",
    "DataSource",
    "EnvironmentData",
    "EnvironmentSettings",
    "EvalSettings",
    "GuardrailSettings",
    "GuessNumberData",
    "HFData",
    "HFDiskData",
    "JsonlData",
    "JudgeReward",
    "LearnerSettings",
    "LoggingSettings",
    "LoopSettings",
    "LoraSettings",
    "MathReward",
    "ModelReward",
    "ModelSettings",
    "OptimizerSettings",
    "ParquetData",
    "PickledReward",
    "PluginReward",
    "ProductData",
    "ProductReward",
    "ReasoningGymData",
    "ReasoningGymReward",
    "VowelsData",
    "RecoverySettings",
    "ReferenceSettings",
    "RegisterMachineData",
    "RewardFunction",
    "RewardSettings",
    "RolloutSettings",
    "RoutedReward",
    "RunConfig",
    "RunningSumData",
    "RunningSumReward",
    "SPPOSettings",
    "SourceSettings",
    "UserReward",
    "SigmoidTransform",
    "SumReward",
    "WeightSyncSettings",
]
