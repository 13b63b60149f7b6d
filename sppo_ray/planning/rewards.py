"""Bytes of reward models: they only do forward passes of a whole sequence classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sppo_ray.config import ModelReward, RewardSettings
from sppo_ray.errors import UserError
from sppo_ray.planning.memory import CUDA_CONTEXT, DTYPE_BYTES, PROCESS, RankMemory
from sppo_ray.planning.shapes import ModelShape, find_shape


def reward_shapes(reward: RewardSettings) -> tuple[ModelShape | None, ...]:
    """Return the shape of each reward model; None = it is not known, and its bytes are not
    counted.
    """
    return tuple(_shape(model) for model in reward.models)


def _shape(model: ModelReward) -> ModelShape | None:
    try:
        return find_shape(model.model)
    except UserError:
        return None


def reward_memories(
    reward: RewardSettings, shapes: Sequence[ModelShape | None], *, on_cuda: bool
) -> Iterator[tuple[str, int, RankMemory]]:
    """Yield the role of each reward model, the number of its processes, and the memory of one."""
    for number, (model, shape) in enumerate(zip(reward.models, shapes, strict=True)):
        yield f"reward-model-{number}", model.replicas, scoring_memory(model, shape, on_cuda=on_cuda)


def scoring_memory(model: ModelReward, shape: ModelShape | None, *, on_cuda: bool) -> RankMemory:
    """Return the memory of one replica: the weights, and one layer's tensors of a micro-batch
    (gate, up and their product of the MLP; hidden states, query, key and value). `on_cuda`: the run
    has GPUs; a replica without one is in host memory.
    """
    components = {"weights": 0, "activations": 0}
    if shape is not None:
        item = DTYPE_BYTES[model.dtype]
        width = 3 * shape.intermediate + 4 * shape.hidden
        components["weights"] = shape.critic_parameters * item
        components["activations"] = model.max_tokens_per_microbatch * width * item
    if not on_cuda:
        return RankMemory({"forward": components}, {})
    if model.gpus_per_replica == 0:
        return RankMemory({"forward": {}}, components | {"process": PROCESS["train"]})
    host = {"process": PROCESS["train"]}
    return RankMemory({"forward": components | {"context": CUDA_CONTEXT}}, host, components["weights"])
