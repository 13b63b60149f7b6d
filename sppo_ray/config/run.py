"""The whole tree: `RunConfig` with one field per section, and numbers derived from several
sections.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sppo_ray.algorithms.base import AlgorithmSpec
from sppo_ray.algorithms.shaping import shaped_reward
from sppo_ray.algorithms.sppo import SPPOSettings
from sppo_ray.config.algorithm import (
    Algorithm,
    critic_needs_probabilities,
    needs_of,
    needs_unit_rewards,
    spec_of,
)
from sppo_ray.config.checks import (
    check_algorithm,
    check_critic_input,
    check_devices,
    check_environment,
    check_layout,
    check_learner_input,
    check_ranks,
    check_reward_models,
    check_warmup,
    reward_range,
)
from sppo_ray.config.data import DataSettings
from sppo_ray.config.environment import EnvironmentSettings
from sppo_ray.config.guardrails import GuardrailSettings
from sppo_ray.config.loop import CheckpointSettings, EvalSettings, LoopSettings
from sppo_ray.config.models import CriticSettings, LearnerSettings, ReferenceSettings
from sppo_ray.config.operations import ClusterSettings, LoggingSettings, RecoverySettings
from sppo_ray.config.reward import RewardSettings
from sppo_ray.config.rollout import RolloutSettings, WeightSyncSettings
from sppo_ray.config.transport import Transport, check_transport, choose_transport
from sppo_ray.settings import Settings


class RunConfig(Settings):
    name: str = "run"
    """Of the run's directory. A recipe without a name is called after its file."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    """Of everything random in a run: the order of prompts, sampling, new heads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = each role by its GPU share; cuda = all roles have one; cpu = none has."""
    algorithm: Algorithm = SPPOSettings()
    data: DataSettings
    learner: LearnerSettings
    critic: CriticSettings
    """Not loaded by algorithms without a critic (spo, grpo, rloo, remax, reinforce,
    reinforce++).
    """
    reference: ReferenceSettings = ReferenceSettings()
    rollout: RolloutSettings = RolloutSettings()
    reward: RewardSettings = RewardSettings()
    environment: EnvironmentSettings | None = None
    """What answers the policy's actions, in several turns. null = a response is one action."""
    weight_sync: WeightSyncSettings = WeightSyncSettings()
    loop: LoopSettings = LoopSettings()
    eval: EvalSettings = EvalSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    recovery: RecoverySettings = RecoverySettings()
    guardrails: GuardrailSettings = GuardrailSettings()
    logging: LoggingSettings = LoggingSettings()
    cluster: ClusterSettings = ClusterSettings()

    @field_validator("algorithm", mode="before")
    @classmethod
    def _sppo_by_default(cls, given: Any) -> Any:
        return {"type": "sppo", **given} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _possible_together(self) -> RunConfig:
        check_algorithm(
            self.algorithm,
            data=self.data,
            loop=self.loop,
            reward=self.reward,
            environment=self.environment,
            rollout=self.rollout,
        )
        sources = (*self.data.train, *self.data.held_out)
        check_environment(self.environment, sources=sources, rollout=self.rollout)
        check_ranks(self.learner, self.data)
        if self.has_critic:
            check_warmup(self.critic, self.loop)
        check_devices(
            self.device,
            rollout=self.rollout,
            learner=self.learner,
            critic=self.critic if self.has_critic else None,
            reference=self.reference if self.has_reference else None,
        )
        check_reward_models(self.device, self.reward, self.rollout)
        check_transport(
            self.weight_sync, rollout=self.rollout, learner=self.learner, in_turns=self._in_turns
        )
        check_layout(
            self.cluster,
            rollout=self.rollout,
            learner=self.learner,
            critic=self.critic if self.has_critic else None,
            has_reference=self.has_reference,
            max_staleness=self.loop.max_staleness,
        )
        check_learner_input(self.learner, self.context_tokens)
        if self.has_critic:
            check_critic_input(self.critic, *self.critic_reads_at_most())
        return self

    @property
    def spec(self) -> AlgorithmSpec:
        return spec_of(self.algorithm)

    @property
    def needs(self) -> Literal["sample", "group", "step"]:
        return needs_of(self.algorithm)

    @property
    def has_critic(self) -> bool:
        return self.spec.critic != "none"

    @property
    def has_reference(self) -> bool:
        return self.algorithm.kl.coefficient > 0

    @property
    def reward_range(self) -> tuple[float, float]:
        """The lowest and highest reward of a response or an episode."""
        return reward_range(self.reward, self.environment)

    @property
    def transport(self) -> Transport:
        """How weights reach the engines."""
        return choose_transport(
            self.weight_sync, rollout=self.rollout, learner=self.learner, in_turns=self._in_turns
        )

    @property
    def _in_turns(self) -> bool:
        return self.cluster.layout == "colocated"

    @property
    def context_tokens(self) -> int:
        """Length of the longest prompt plus the longest response."""
        return self.data.max_prompt_tokens + self.rollout.max_response_tokens

    @property
    def critic_warmup_steps(self) -> int:
        """Initial steps in which the policy does not learn; 0 without a critic."""
        return self.critic.warmup_steps if self.has_critic else 0

    @property
    def prompt_rounds(self) -> int:
        """Cohorts of the prompt stream in one step: more than one with a curriculum or dynamic
        sampling.
        """
        if self.data.curriculum is not None:
            return self.data.curriculum.candidates
        return self.algorithm.sampling_rounds

    @property
    def critic_needs_probabilities(self) -> bool:
        """Whether the critic is trained by binary cross-entropy, which needs rewards in [0, 1]."""
        return critic_needs_probabilities(self.algorithm)

    def shaped(self, reward: float, num_tokens: int) -> float:
        """Return the reward after overlong shaping, which advantage and critic use."""
        floor = 0.0 if needs_unit_rewards(self.algorithm) else None
        return shaped_reward(
            reward, num_tokens, self.rollout.max_response_tokens, self.algorithm.overlong, floor=floor
        )

    def critic_reads_at_most(self) -> tuple[int, str]:
        """Return the critic's longest input in tokens and the setting that determines it."""
        if self.spec.critic == "token":
            return self.context_tokens, "data.max_prompt_tokens + rollout.max_response_tokens"
        return self.data.max_prompt_tokens, "data.max_prompt_tokens"

    def derived(self) -> dict[str, Any]:
        """Numbers derived from the settings, printed at the start of a run and by --dry-run."""
        data, loop = self.data, self.loop
        return {
            "samples a step": data.samples_per_step,
            "minibatches a step (optimizer steps)": data.minibatches_per_step,
            "samples a rank and minibatch": data.minibatch_size / self.learner.ranks,
            "optimizer steps in all": data.minibatches_per_step * loop.steps,
            "samples in all": data.samples_per_step * loop.steps,
            "samples in flight at most": (loop.max_staleness + 1) * data.samples_per_step,
            "context of an engine (tokens)": self.context_tokens,
            "rollout slots (workers x sequences)": self.rollout.workers * self.rollout.max_sequences,
            "logical CPUs": self.logical_cpus(),
            "GPUs": self.logical_gpus(),
        }

    def logical_cpus(self) -> float:
        return round(
            self.rollout.workers * self.rollout.cpus_per_worker
            + self.learner.ranks * self.learner.cpus_per_rank
            + self.has_critic * self.critic.ranks * self.critic.cpus_per_rank
            + self.has_reference * self.learner.ranks * self.reference.cpus_per_rank
            + self.reward.logical_cpus
            + (0.0 if self.environment is None else self.environment.cpus),
            4,
        )

    def logical_gpus(self) -> float:
        if self._in_turns:  # ranks share the engines' GPUs
            return self.rollout.workers * self.rollout.gpus_per_worker + self.reward.logical_gpus
        return round(
            self.rollout.workers * self.rollout.gpus_per_worker
            + self.learner.ranks * self.learner.gpus_per_rank
            + self.has_critic * self.critic.ranks * self.critic.gpus_per_rank
            + self.has_reference * self.learner.ranks * self.reference.gpus_per_rank
            + self.reward.logical_gpus,
            4,
        )
