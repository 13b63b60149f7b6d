"""Memory of roles that share GPUs in turns (`cluster.layout: colocated`): the largest phase, not
the sum. The phases are those of `trainer/phases.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sppo_ray.planning.memory import CUDA_CONTEXT, RankMemory, Training, pinned_bytes, reference_memory

PHASE_OF = {"rollout": "generate", "learner": "policy", "critic": "critic"}
"""The phase in which a role holds all it needs."""


def phase_bytes(
    memories: Mapping[str, RankMemory], critic: Training | None, *, in_chunks: bool = False
) -> dict[str, int]:
    """Return the bytes of a GPU by phase. `critic`: its training, None without a critic.

    A role that is not at work keeps its CUDA context, an engine its graphs too. The critic values
    prompts while the engines generate: weights and one layer's tensors (`reference_memory`). With
    `in_chunks` engine and learner hold their weights while they are sent; the KV cache comes later.
    """
    rest = {role: memory.work.get("context", CUDA_CONTEXT) for role, memory in memories.items()}
    peaks = {role: memory.peak for role, memory in memories.items()}
    # an engine's KV cache is not there yet when its weights arrive
    peaks["rollout"] = sum(memories["rollout"].phases["generation"].values())
    phases = {PHASE_OF[role]: peak + sum(rest.values()) - rest[role] for role, peak in peaks.items()}
    if critic is not None:
        phases["generate"] += reference_memory(critic).peak - CUDA_CONTEXT
    if in_chunks:
        both = (memories[role].phases["sync"] for role in ("rollout", "learner"))
        phases["sync"] = sum(rest.values()) + sum(
            one["weights"] + one["transfer buffers"] for one in both
        )
    return phases


def with_moved_states(memory: RankMemory) -> RankMemory:
    """Return a rank's memory with the host memory for its states while other roles work: weights
    and optimizer, pinned, so that each buffer is rounded up to a power of two.
    """
    return replace(memory, host={**memory.host, "moved states": sum(map(pinned_bytes, _buffers(memory)))})


def moved_bytes(memory: RankMemory) -> tuple[int, int]:
    """Return the bytes of a rank's weights and of all its states that move."""
    weights, *optimizer = _buffers(memory)
    return weights, weights + sum(optimizer)


def _buffers(memory: RankMemory) -> list[int]:
    """Weights; master weights and two moments, unless they are on the host already."""
    states = memory.phases["backward"]
    part = states["optimizer"] // 3
    return [states["weights"], *([part] * 3 if part else [])]
