"""Settings that do not work together: what no section can see alone, each refused with the remedy.

Pure functions of the sections that they compare. `RunConfig` calls them in the order in which they stand here, and the
first that finds a fault is the one that is reported.
"""

from __future__ import annotations

from sppo_ray.config.algorithm import Algorithm, critic_needs_probabilities, spec_of
from sppo_ray.config.data import DataSettings
from sppo_ray.config.loop import LoopSettings
from sppo_ray.config.models import CriticSettings, LearnerSettings, ModelSettings, ReferenceSettings
from sppo_ray.config.reward import RewardSettings
from sppo_ray.config.rollout import RolloutSettings


def check_algorithm(
    algorithm: Algorithm, *, data: DataSettings, loop: LoopSettings, reward: RewardSettings, rollout: RolloutSettings
) -> None:
    """What an algorithm asks of samples, prompts and rewards."""
    _check_samples(algorithm, data, loop)
    if data.curriculum is not None and spec_of(algorithm).critic != "prompt":
        raise ValueError(
            f"data.curriculum chooses prompts by the prompt critic's value, and {algorithm.type} has none: set algorithm.type to "
            "sppo, or data.curriculum to null"
        )
    low, high = reward.range
    if critic_needs_probabilities(algorithm) and (low < 0.0 or high > 1.0):
        raise ValueError(
            f"reward.function.range is [{low:g}, {high:g}], but the critic of {algorithm.type} is trained by binary "
            "cross-entropy and needs rewards in [0, 1]: rescale the function, e.g. (r - low) / (high - low), and declare [0, 1]"
        )
    overlong = algorithm.overlong
    if overlong is not None and overlong.buffer_tokens > rollout.max_response_tokens:
        raise ValueError(
            f"algorithm.overlong.buffer_tokens {overlong.buffer_tokens} exceeds rollout.max_response_tokens "
            f"{rollout.max_response_tokens}: lower it"
        )


def _check_samples(algorithm: Algorithm, data: DataSettings, loop: LoopSettings) -> None:
    """The samples that an algorithm compares with each other exist, and come together."""
    name, needs = algorithm.type, spec_of(algorithm).needs
    if needs == "group":
        _check_groups(name, data, loop)
    if name == "reinforce" and data.samples_per_step < 2:
        raise ValueError(
            "algorithm reinforce takes the mean reward of a step for its baseline, and a step of one sample is its own mean: "
            "every advantage would be 0; raise data.prompts_per_step or data.samples_per_prompt"
        )
    if needs == "step" and loop.minibatch_order == "finish":
        raise ValueError(
            f"loop.minibatch_order finish trains while samples are still missing, and {name} needs all samples of a step "
            "before it knows an advantage: set it to dispatch"
        )


def _check_groups(name: str, data: DataSettings, loop: LoopSettings) -> None:
    samples = data.samples_per_prompt
    if samples < 2:
        raise ValueError(
            f"data.samples_per_prompt is {samples}, but {name} compares the samples of a prompt with each other: "
            "set it to 2 or more, e.g. 8"
        )
    if data.minibatch_size % samples:
        raise ValueError(
            f"data.minibatch_size {data.minibatch_size} cuts groups of data.samples_per_prompt {samples} apart: "
            "make it a multiple"
        )
    if loop.minibatch_order == "finish":
        raise ValueError(
            f"loop.minibatch_order finish takes samples one by one, and {name} needs whole groups: set it to dispatch"
        )


def check_ranks(learner: LearnerSettings, data: DataSettings) -> None:
    if learner.ranks > data.minibatch_size:
        raise ValueError(
            f"learner.ranks {learner.ranks} exceeds data.minibatch_size {data.minibatch_size}: a rank would have no sample; "
            "raise the minibatch or lower the ranks"
        )


def check_warmup(critic: CriticSettings, loop: LoopSettings) -> None:
    if critic.warmup_steps >= loop.steps:
        raise ValueError(
            f"critic.warmup_steps {critic.warmup_steps} leaves none of the {loop.steps} steps to the policy: lower it, "
            "or raise loop.steps"
        )


def check_devices(
    device: str, *, rollout: RolloutSettings, learner: LearnerSettings, critic: CriticSettings, reference: ReferenceSettings
) -> None:
    """`device` and the GPUs of each process agree; a model's attention works in its dtype."""
    shares = {
        "rollout.gpus_per_worker": rollout.gpus_per_worker,
        "learner.gpus_per_rank": learner.gpus_per_rank,
        "critic.gpus_per_rank": critic.gpus_per_rank,
        "reference.gpus_per_rank": reference.gpus_per_rank,
    }
    for name, share in shares.items():
        if device == "cpu" and share > 0:
            raise ValueError(f"{name} is {share:g}, but device is cpu: set it to 0, or device to cuda")
    tensor_parallel, gpus = rollout.tensor_parallel_size, rollout.gpus_per_worker
    if device == "cuda" and gpus == 0:
        raise ValueError(
            "device is cuda, but rollout.gpus_per_worker is 0: give each engine its GPUs, e.g. 1, or set device to cpu"
        )
    if gpus > 0 and tensor_parallel > 1 and gpus < tensor_parallel:
        raise ValueError(
            f"rollout.tensor_parallel_size {tensor_parallel} needs as many GPUs a worker, rollout.gpus_per_worker is {gpus:g}: "
            f"set it to {tensor_parallel}"
        )
    for name, model in (("learner", learner), ("critic", critic)):
        _check_attention(name, model)


def _check_attention(name: str, model: ModelSettings) -> None:
    if model.attention == "flash_attention_2" and model.dtype == "float32":
        raise ValueError(
            f"{name}.attention flash_attention_2 works in bfloat16 only: set {name}.dtype to bfloat16, or attention to sdpa"
        )


def check_learner_input(learner: LearnerSettings, longest: int) -> None:
    """A micro-batch holds at least one sample: `longest` is a prompt's and a response's tokens together."""
    if learner.max_tokens_per_microbatch < longest:
        raise ValueError(
            f"learner.max_tokens_per_microbatch {learner.max_tokens_per_microbatch} is less than the longest sample, "
            f"{longest} tokens (data.max_prompt_tokens + rollout.max_response_tokens): raise it to at least that, or shorten "
            "either"
        )


def check_critic_input(critic: CriticSettings, longest: int, setting: str) -> None:
    """A micro-batch holds at least one input, whose length in tokens follows from `setting`."""
    if critic.max_tokens_per_microbatch < longest:
        raise ValueError(
            f"critic.max_tokens_per_microbatch {critic.max_tokens_per_microbatch} is less than {setting} {longest}: raise it"
        )
