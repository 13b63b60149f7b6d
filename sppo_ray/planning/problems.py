"""Why a planned run does not fit on a cluster, or fits tightly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sppo_ray.config import RunConfig
from sppo_ray.planning.devices import GIB, Cluster, Device
from sppo_ray.planning.engine_memory import EngineMemory
from sppo_ray.planning.memory import RankMemory
from sppo_ray.planning.placement import Place
from sppo_ray.planning.resources import Bundle
from sppo_ray.planning.turns import PHASE_OF

TIGHT = 0.9
"""Above this share of the memory a plan that fits has a warning."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the run does not fit. `role`: whose settings help; empty = the cluster's."""

    role: str
    text: str


def placement_problems(config: RunConfig, cluster: Cluster, left: Sequence[Bundle]) -> list[Problem]:
    if not left:
        return []
    need, have = config.logical_gpus(), cluster.num_gpus
    if need > have:
        return [Problem("gpus", f"the run needs {need:g} GPUs, the cluster has {have}")]
    names = ", ".join(f"{bundle.role} ({bundle.needs})" for bundle in left)
    return [Problem("gpus", f"no node has room for {names}")]


def device_problems(
    config: RunConfig,
    device: Device,
    places: Sequence[Place],
    memories: Mapping[str, RankMemory],
    engine: EngineMemory,
    turns: Mapping[str, int],
) -> list[Problem]:
    if device.kind == "cuda":
        found = _turn_problems(device, turns) if turns else _gpu_problems(device, places, memories)
        if device.memory and engine.memory.phases["generation"]["KV cache"] == 0:
            text = "the engine's weights and activations leave no room for a KV cache in its share of the GPU"
            return [*found, Problem("rollout", text)]
    else:
        found = []
    if engine.cached_tokens < config.context_tokens:
        found.append(
            Problem(
                "rollout",
                f"an engine's KV cache holds {engine.cached_tokens:,} tokens, less than one longest "
                f"response with its prompt ({config.context_tokens:,})",
            )
        )
    return found


def _turn_problems(device: Device, turns: Mapping[str, int]) -> list[Problem]:
    role_of = {phase: role for role, phase in PHASE_OF.items()}
    return [
        Problem(
            role_of.get(phase, "learner"),
            f"the phase {phase} needs {need / GIB:.1f} GiB of a {device.name}'s "
            f"{device.memory / GIB:.1f} GiB",
        )
        for phase, need in turns.items()
        if need > device.memory
    ]


def _gpu_problems(
    device: Device, places: Sequence[Place], memories: Mapping[str, RankMemory]
) -> list[Problem]:
    found: list[Problem] = []
    for users in gpu_users(places).values():
        peaks = {name: memories[name.rpartition("-")[0]].peak for name in users}
        groups = [name.rpartition("-")[0] for name in users]
        if any(groups.count(role) > 1 for role in ("learner", "critic")):
            found.append(
                Problem(groups[0], f"{' and '.join(users)} share a GPU: NCCL takes one rank of a group")
            )
        total = sum(peaks.values())
        if total > device.memory:
            largest = max(peaks, key=lambda name: peaks[name])
            role = largest.rpartition("-")[0]
            text = (
                f"{' + '.join(groups)} {'need' if len(users) > 1 else 'needs'} {total / GIB:.1f} GiB of a "
                f"{device.name}'s {device.memory / GIB:.1f} GiB"
            )
            found.append(Problem(role, text))
    return list({problem.text: problem for problem in found}.values())


def gpu_users(places: Sequence[Place]) -> dict[tuple[int, int], list[str]]:
    """Return the actors on each GPU, by (node, GPU)."""
    users: dict[tuple[int, int], list[str]] = {}
    for found in places:
        for gpu in found.gpus:
            users.setdefault((found.node, gpu), []).append(found.role)
    return users


def host_problems(device: Device, cluster: Cluster, host: Sequence[int]) -> list[Problem]:
    role = "host" if device.kind == "cuda" else "memory"
    return [
        Problem(role, f"node {number} needs {need / GIB:.1f} of its {node.memory / GIB:.1f} GiB of memory")
        for number, (need, node) in enumerate(zip(host, cluster.nodes, strict=True))
        if node.memory and need > node.memory
    ]


def warnings_of(
    device: Device,
    cluster: Cluster,
    host: Sequence[int],
    places: Sequence[Place],
    memories: Mapping[str, RankMemory],
    turns: Mapping[str, int],
) -> tuple[str, ...]:
    found = [
        f"node {number} needs {need / node.memory:.0%} of its memory"
        for number, (need, node) in enumerate(zip(host, cluster.nodes, strict=True))
        if node.memory and TIGHT * node.memory < need <= node.memory
    ]
    for phase, need in turns.items():
        if TIGHT * device.memory < need <= device.memory:
            found.append(f"phase {phase}: {need / device.memory:.0%} of its GPU's memory")
    if device.kind == "cuda" and not turns:
        for users in gpu_users(places).values():
            roles = [name.rpartition("-")[0] for name in users]
            total = sum(memories[role].peak for role in roles)
            if TIGHT * device.memory < total <= device.memory and roles != ["rollout"]:
                found.append(f"{' + '.join(roles)}: {total / device.memory:.0%} of its GPU's memory")
    return tuple(dict.fromkeys(found))
