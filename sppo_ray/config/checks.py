"""Checks of settings that do not work together across sections; each error says what to change.

Pure functions of the sections that they compare. `RunConfig` calls them in the order of this file
and reports the first error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sppo_ray.config.algorithm import (
    Algorithm,
    critic_needs_probabilities,
    needs_of,
    needs_unit_rewards,
    spec_of,
)
from sppo_ray.config.data import DataSettings, DataSource
from sppo_ray.config.environment import EnvironmentSettings
from sppo_ray.config.loop import LoopSettings
from sppo_ray.config.models import CriticSettings, LearnerSettings, ModelSettings, ReferenceSettings
from sppo_ray.config.operations import ClusterSettings
from sppo_ray.config.reward import RewardSettings
from sppo_ray.config.reward_models import ModelReward
from sppo_ray.config.rollout import RolloutSettings


def check_algorithm(
    algorithm: Algorithm,
    *,
    data: DataSettings,
    loop: LoopSettings,
    reward: RewardSettings,
    environment: EnvironmentSettings | None,
    rollout: RolloutSettings,
) -> None:
    """Check samples, prompts and rewards against the needs of the algorithm."""
    _check_samples(algorithm, data, loop)
    estimates = spec_of(algorithm).critic == "prompt" or algorithm.tracked is not None
    if data.curriculum is not None and not estimates:
        raise ValueError(
            f"data.curriculum chooses prompts by the prompt critic's value or a tracker's rate, and "
            f"{algorithm.type} has none: set algorithm.type to sppo or spo, or data.curriculum to null"
        )
    if data.critic_suffix is not None and spec_of(algorithm).critic != "prompt":
        raise ValueError(
            f"data.critic_suffix is for a critic that reads prompts, and {algorithm.type} has none: set "
            "algorithm.type to sppo, or data.critic_suffix to null"
        )
    if algorithm.overlong is not None and environment is not None:
        raise ValueError(
            "algorithm.overlong penalises single responses near rollout.max_response_tokens, and an episode "
            "also has tokens of its environment: set algorithm.overlong to null"
        )
    low, high = reward_range(reward, environment)
    if needs_unit_rewards(algorithm) and (low < 0.0 or high > 1.0):
        if environment is None or environment.asks_reward_function:
            _check_transforms(algorithm.type, reward)
        is_critic = critic_needs_probabilities(algorithm)
        why = "critic of {} is trained by binary cross-entropy" if is_critic else "tracker of {} keeps rates"
        raise ValueError(
            f"reward.function.range is [{low:g}, {high:g}], but the {why.format(algorithm.type)} "
            "and needs rewards in [0, 1]: rescale the function, e.g. (r - low) / (high - low), "
            "and declare [0, 1] (with an environment: environment.range)"
        )
    overlong = algorithm.overlong
    if overlong is not None and overlong.buffer_tokens > rollout.max_response_tokens:
        raise ValueError(
            f"algorithm.overlong.buffer_tokens {overlong.buffer_tokens} exceeds rollout.max_response_tokens "
            f"{rollout.max_response_tokens}: lower it"
        )


def reward_range(reward: RewardSettings, environment: EnvironmentSettings | None) -> tuple[float, float]:
    """Return the lowest and highest reward of a response or an episode."""
    if environment is None:
        return reward.range
    if not environment.asks_reward_function:
        return environment.range or (0.0, 1.0)
    (low, high), (least, most) = reward.range, environment.range or (0.0, 0.0)
    return low + least, high + most


def check_environment(
    environment: EnvironmentSettings | None, *, sources: Sequence[DataSource], rollout: RolloutSettings
) -> None:
    """Check turns against the length of a response, and the environment against the data."""
    games = {source.type for source in sources} & {"guess-number"}
    kind = None if environment is None else environment.type
    if games and kind not in games | {"custom"}:
        raise ValueError(
            f"data of type {min(games)} is a game of several turns: set environment.type to {min(games)}"
        )
    if kind != "custom" and any(source.type == "environment" for source in sources):
        raise ValueError(
            "data of type environment are numbers, and an environment makes their first messages: set "
            "environment.type to custom, and environment.environment to your class"
        )
    if environment is None:
        return
    if environment.max_turn_tokens > rollout.max_response_tokens:
        raise ValueError(
            f"environment.max_turn_tokens {environment.max_turn_tokens} exceeds rollout.max_response_tokens "
            f"{rollout.max_response_tokens}, which is for all turns of an episode: lower the one or raise "
            "the other"
        )


def _check_transforms(name: str, reward: RewardSettings) -> None:
    for model in reward.models:
        if model.transform is None:
            raise ValueError(
                f"the score of reward model {model.model} has no limits, but the critic of {name} is "
                "trained by binary cross-entropy and needs rewards in [0, 1]: set its transform to "
                "{type: sigmoid} or {type: affine, low: L, high: H}"
            )


def _check_samples(algorithm: Algorithm, data: DataSettings, loop: LoopSettings) -> None:
    """Check that samples which the algorithm compares exist and are in the same minibatch."""
    name, needs = algorithm.type, needs_of(algorithm)
    if needs == "group":
        _check_groups(name, data, loop)
    if algorithm.centers and data.samples_per_step < 2:
        option = {"spo": "normalize", "sppo": "center"}.get(name)
        raise ValueError(
            f"algorithm {name} subtracts the mean of a step, and a step of one sample is its own mean: "
            "every advantage would be 0; raise data.prompts_per_step or data.samples_per_prompt"
            + (f", or set {option} to false" if option else "")
        )
    if needs == "step" and loop.minibatch_order == "finish":
        raise ValueError(
            f"loop.minibatch_order finish trains while samples are still missing, and {name} needs all "
            "samples of a step "
            "before it knows an advantage: set it to dispatch"
        )


def _check_groups(name: str, data: DataSettings, loop: LoopSettings) -> None:
    samples = data.samples_per_prompt
    if samples < 2:
        raise ValueError(
            f"data.samples_per_prompt is {samples}, but {name} compares the samples of a prompt with each "
            "other: "
            "set it to 2 or more, e.g. 8"
        )
    if data.minibatch_size % samples:
        raise ValueError(
            f"data.minibatch_size {data.minibatch_size} cuts groups of data.samples_per_prompt {samples} "
            "apart: "
            "make it a multiple"
        )
    if loop.minibatch_order == "finish":
        raise ValueError(
            f"loop.minibatch_order finish takes samples one by one, and {name} needs whole groups: set it to "
            "dispatch"
        )


def check_ranks(learner: LearnerSettings, data: DataSettings) -> None:
    if learner.ranks > data.minibatch_size:
        raise ValueError(
            f"learner.ranks {learner.ranks} exceeds data.minibatch_size {data.minibatch_size}: a rank would "
            "have no sample; "
            "raise the minibatch or lower the ranks"
        )


def check_warmup(critic: CriticSettings, loop: LoopSettings) -> None:
    if critic.warmup_steps >= loop.steps:
        raise ValueError(
            f"critic.warmup_steps {critic.warmup_steps} leaves none of the {loop.steps} steps to the policy: "
            "lower it, "
            "or raise loop.steps"
        )


def check_devices(
    device: str,
    *,
    rollout: RolloutSettings,
    learner: LearnerSettings,
    critic: CriticSettings | None,
    reference: ReferenceSettings | None,
) -> None:
    """Check that `device` and the GPUs of each process agree, and attention with the dtype. None =
    a role that is not loaded.
    """
    ranks = {"learner": learner} | ({} if critic is None else {"critic": critic})
    shares = {f"{role}.gpus_per_rank": settings.gpus_per_rank for role, settings in ranks.items()}
    if reference is not None:
        shares["reference.gpus_per_rank"] = reference.gpus_per_rank
    check_engine_device(device, rollout, shares)
    for name, share in shares.items():
        _check_share(device, name, share)
    for role, settings in ranks.items():
        _check_ranks_share(role, settings)
        _check_attention(role, settings)


def check_engine_device(device: str, rollout: RolloutSettings, others: Mapping[str, float]) -> None:
    """Check the GPUs of an engine. `others` are the GPU shares of other roles, by setting."""
    gpus, tensor_parallel = rollout.gpus_per_worker, rollout.tensor_parallel_size
    _check_share(device, "rollout.gpus_per_worker", gpus)
    on_gpus = [name for name, share in others.items() if share > 0]
    if gpus == 0 and on_gpus:
        raise ValueError(
            f"{on_gpus[0]} is {others[on_gpus[0]]:g}, so this run needs a machine with GPUs, but "
            "rollout.gpus_per_worker is 0: give each engine its GPUs, e.g. 1, or set all shares to 0"
        )
    if rollout.async_scheduling and gpus == 0:
        raise ValueError(
            "rollout.async_scheduling works on GPUs only: set it to null, or give each engine its GPUs"
        )
    if gpus == 0:
        return
    if gpus < 1 and tensor_parallel == 1:
        if rollout.kv_cache_gib is None:
            raise ValueError(
                f"rollout.gpus_per_worker is {gpus:g}: the engine shares its GPU, and cannot measure how "
                "much memory the other roles leave it, because all start at the same time: set "
                "rollout.kv_cache_gib, e.g. to 8, or gpus_per_worker to 1"
            )
    elif gpus != tensor_parallel:
        raise ValueError(
            f"rollout.gpus_per_worker is {gpus:g}, and an engine of rollout.tensor_parallel_size "
            f"{tensor_parallel} uses {tensor_parallel}: set both to the same number"
        )


def check_reward_models(device: str, reward: RewardSettings, rollout: RolloutSettings) -> None:
    """Check the GPUs of reward models. They may stay on CPUs in any run."""
    for model in reward.models:
        _check_replica(device, model, rollout)


def _check_replica(device: str, model: ModelReward, rollout: RolloutSettings) -> None:
    share = model.gpus_per_replica
    if device == "cpu" and share > 0:
        raise ValueError(
            f"the reward model {model.model} has gpus_per_replica {share:g}, but device is cpu: set it to 0, "
            "or device to auto"
        )
    if share > 0 and rollout.gpus_per_worker == 0:
        raise ValueError(
            f"the reward model {model.model} has gpus_per_replica {share:g}, so this run needs a machine "
            "with GPUs, but rollout.gpus_per_worker is 0: give each engine its GPUs, e.g. 1, or set both "
            "to 0"
        )


def check_layout(
    cluster: ClusterSettings,
    *,
    rollout: RolloutSettings,
    learner: LearnerSettings,
    critic: CriticSettings | None,
    has_reference: bool,
    max_staleness: int,
) -> None:
    """Check that the roles of layout `colocated` can take turns on the same GPUs. `critic`: None =
    not loaded.
    """
    if cluster.layout != "colocated":
        return
    _check_turns(rollout, has_reference=has_reference, max_staleness=max_staleness)
    ranks = {"learner": learner} | ({} if critic is None else {"critic": critic})
    for role, settings in ranks.items():
        if settings.lora is not None:
            raise ValueError(
                f"cluster.layout colocated: it has not been tried with {role}.lora: set that to null, or "
                "cluster.layout to separate"
            )
        _check_colocated_ranks(role, settings, rollout)
    if rollout.gpus_per_worker > 0 and rollout.kv_cache_gib is None:
        raise ValueError(
            "cluster.layout colocated: an engine shares its GPU, and vLLM cannot measure what the other "
            "roles leave it: set rollout.kv_cache_gib, e.g. to 24 (`sppo-ray plan` shows what fits)"
        )


def _check_turns(rollout: RolloutSettings, *, has_reference: bool, max_staleness: int) -> None:
    separate = "or cluster.layout to separate"
    if max_staleness > 0:
        raise ValueError(
            f"cluster.layout colocated: engines and learner take turns, so loop.max_staleness "
            f"{max_staleness} cannot overlap them: set it to 0, {separate}"
        )
    if rollout.autoscale is not None:
        raise ValueError(
            "cluster.layout colocated: every engine shares a GPU with a learner rank, so their number is "
            f"fixed: set rollout.autoscale to null, {separate}"
        )
    if rollout.tensor_parallel_size > 1:
        raise ValueError(
            f"cluster.layout colocated: an engine over {rollout.tensor_parallel_size} GPUs cannot share "
            f"them with ranks of one GPU each: set rollout.tensor_parallel_size to 1, {separate}"
        )
    if has_reference:
        raise ValueError(
            "cluster.layout colocated: the reference of a KL penalty does not take turns: set "
            f"algorithm.kl.coefficient to 0, {separate}"
        )


def _check_colocated_ranks(role: str, settings: ModelSettings, rollout: RolloutSettings) -> None:
    is_unequal = settings.ranks != rollout.workers if role == "learner" else settings.ranks > rollout.workers
    if is_unequal:
        most = "equal" if role == "learner" else "be at most"
        raise ValueError(
            f"cluster.layout colocated: {role}.ranks is {settings.ranks}, and must {most} rollout.workers "
            f"{rollout.workers}, because rank i shares the GPU of engine i: set it to {rollout.workers}"
        )
    if settings.zero_stage == 3:
        raise ValueError(
            f"cluster.layout colocated: the states of {role}.zero_stage 3 cannot be moved away and back: "
            "set it to 2, or cluster.layout to separate"
        )
    shares = (settings.gpus_per_rank, rollout.gpus_per_worker)
    if shares not in ((0, 0), (1, 1)):
        raise ValueError(
            f"cluster.layout colocated: {role}.gpus_per_rank is {shares[0]:g} and rollout.gpus_per_worker "
            f"{shares[1]:g}: in its turn each has the whole GPU: set both to 1, or both to 0 for CPUs"
        )


def _check_share(device: str, name: str, share: float) -> None:
    if device == "cpu" and share > 0:
        raise ValueError(f"{name} is {share:g}, but device is cpu: set it to 0, or device to cuda")
    if device == "cuda" and share == 0:
        raise ValueError(f"device is cuda, but {name} is 0: set it, e.g. to 1, or device to auto")
    if name != "rollout.gpus_per_worker" and share > 1:
        raise ValueError(f"{name} is {share:g}, and a rank uses one GPU: set it to 1, and use more ranks")


def _check_ranks_share(role: str, settings: ModelSettings) -> None:
    if 0 < settings.gpus_per_rank < 1 and settings.ranks > 1:
        raise ValueError(
            f"{role}.gpus_per_rank is {settings.gpus_per_rank:g}: two of the {settings.ranks} ranks could "
            "share a GPU, which NCCL refuses: set it to 1, or ranks to 1"
        )


def _check_attention(role: str, settings: ModelSettings) -> None:
    if settings.attention != "flash_attention_2":
        return
    if settings.dtype == "float32":
        raise ValueError(
            f"{role}.attention flash_attention_2 works in bfloat16 only: set {role}.dtype to bfloat16, or "
            "attention to sdpa"
        )
    if settings.gpus_per_rank == 0:
        raise ValueError(
            f"{role}.attention flash_attention_2 works on GPUs only: set {role}.gpus_per_rank to 1, or "
            "attention to sdpa"
        )


def check_learner_input(learner: LearnerSettings, longest: int) -> None:
    """Check that a micro-batch holds at least one sample. `longest` counts prompt and response
    tokens.
    """
    if learner.max_tokens_per_microbatch < longest:
        raise ValueError(
            f"learner.max_tokens_per_microbatch {learner.max_tokens_per_microbatch} is less than the longest "
            "sample, "
            f"{longest} tokens (data.max_prompt_tokens + rollout.max_response_tokens): raise it to at least "
            "that, or shorten "
            "either"
        )


def check_critic_input(critic: CriticSettings, longest: int, setting: str) -> None:
    """Check that a micro-batch holds at least one input, whose length in tokens follows from
    `setting`.
    """
    if critic.max_tokens_per_microbatch < longest:
        raise ValueError(
            f"critic.max_tokens_per_microbatch {critic.max_tokens_per_microbatch} is less than {setting} "
            f"{longest}: raise it"
        )
