"""A plan as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sppo_ray.formatting import format_count, format_seconds
from sppo_ray.planning.devices import GIB
from sppo_ray.planning.plan import Plan, RolePlan

COMPONENTS = (
    "weights", "gradients", "optimizer", "offloaded optimizer", "activations", "logits", "KV cache",
    "buffers", "transfer buffers", "sync buffer", "context", "process",
)  # fmt: skip


def plan_text(plan: Plan) -> str:
    """Return the plan as plain text: a table of bytes a process, then placement, host and time."""
    on_gpu = plan.cluster.device.kind == "cuda"
    where = f"GiB a {plan.cluster.device.name}" if on_gpu else "GiB of memory"
    lines = [f"cluster   {plan.cluster.text}", "", *_memory_table(plan, where), ""]
    lines += [f"placement {line}" for line in _places(plan)]
    lines += [f"host      {text}" for text in _host_lines(plan)]
    for role in plan.roles:
        if size := role.memory.host.get("offloaded optimizer"):
            lines.append(f"host      {role.role}: offloaded optimizer of {_gib(size)} GiB a rank")
        if size := role.memory.host.get("moved states"):
            lines.append(f"host      {role.role}: {_gib(size)} GiB a rank for its states while others work")
    if plan.turns:
        phases = ", ".join(f"{phase} {_gib(size)}" for phase, size in plan.turns.items())
        lines.append(f"turns     GiB of a GPU by phase: {phases}")
    lines.append(f"/dev/shm  {_gib(plan.shared_memory)} GiB at most: the weights in Ray's object store")
    lines.append(f"disk      {_gib(plan.disk)} GiB: checkpoints and export, without trajectories")
    lines.append(f"logits    {_gib(plan.logits_chunk)} GiB for a chunk of the learner's head")
    buffers = {role.role: role.memory.phases.get("sync", {}) for role in plan.roles}
    sizes = {name: phase["transfer buffers"] for name, phase in buffers.items() if phase}
    if sizes:
        text = ", ".join(f"{name} {_gib(size)}" for name, size in sizes.items())
        lines.append(f"transfer  GiB of buffers on the device during a weight sync: {text}")
    lines.append(f"KV cache  {max(0, plan.cached_tokens):,} tokens an engine")
    stages = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in plan.stages.items())
    lines.append(f"step      {format_seconds(plan.step_seconds)}, estimated: {stages}")
    gpus = f", {plan.gpu_hours:,.0f} GPU hours on {format_count(plan.gpus, 'GPU')}" if plan.gpus else ""
    lines.append(f"run       {plan.steps} steps: {plan.hours:,.1f} hours{gpus}, without evaluations")
    lines += [f"warning   {text}" for text in plan.warnings]
    lines += [f"problem   {problem.text}" for problem in plan.problems]
    return "\n".join(lines)


def _memory_table(plan: Plan, where: str) -> list[str]:
    """Components of the largest phase after loading; `load` and `peak` are totals."""
    works = [role.memory.work for role in plan.roles]
    used = [name for name in COMPONENTS if any(name in work for work in works)]
    header = ["process", *used, "load", "peak", "recompute on", "off"]
    rows = [
        [
            f"{role.role} x{role.count}",
            *(_gib(work[name]) if name in work else "" for name in used),
            _gib(sum(role.memory.phases.get("load", {}).values())) if "load" in role.memory.phases else "",
            _gib(role.memory.peak),
            *_recomputed(role),
        ]
        for role, work in zip(plan.roles, works, strict=True)
    ]
    return [where, *_aligned([header, *rows])]


def _recomputed(role: RolePlan) -> tuple[str, str]:
    """The peak with and without gradient checkpointing."""
    if role.peaks is None:
        return "", ""
    return _gib(role.peaks[0]), _gib(role.peaks[1])


def _places(plan: Plan) -> list[str]:
    lines = []
    for number in range(len(plan.cluster.nodes)):
        here = [found for found in plan.places if found.node == number]
        names = [
            found.role + (f" (GPU {', '.join(map(str, found.gpus))})" if found.gpus else "") for found in here
        ]
        if names:
            lines.append(f"node {number}: {', '.join(names)}")
    return lines


def _host_lines(plan: Plan) -> list[str]:
    lines = []
    for number, (need, node) in enumerate(zip(plan.host_bytes, plan.cluster.nodes, strict=True)):
        if any(found.node == number for found in plan.places):
            of = f" of {_gib(node.memory)} GiB" if node.memory else " GiB"
            lines.append(f"node {number}: {_gib(need)}{of}, /dev/shm included")
    return lines


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values; bytes and seconds."""
    return {
        "fits": plan.fits,
        "problems": [problem.text for problem in plan.problems],
        "warnings": list(plan.warnings),
        "cluster": {
            "device": plan.cluster.device.name,
            "device_memory": plan.cluster.device.memory,
            "nodes": [{"cpus": n.cpus, "gpus": n.gpus, "memory": n.memory} for n in plan.cluster.nodes],
        },
        "processes": [
            {
                "role": role.role,
                "count": role.count,
                "peak": role.memory.peak,
                "peak_phase": role.memory.peak_phase,
                "phases": {name: dict(phase) for name, phase in role.memory.phases.items()},
                "host": dict(role.memory.host),
                "peak_with_and_without_recompute": role.peaks,
            }
            for role in plan.roles
        ],
        "turns": dict(plan.turns),
        "places": [{"role": p.role, "node": p.node, "gpus": list(p.gpus)} for p in plan.places],
        "host_bytes": list(plan.host_bytes),
        "shared_memory": plan.shared_memory,
        "disk": plan.disk,
        "logits_chunk": plan.logits_chunk,
        "cached_tokens": plan.cached_tokens,
        "seconds": dict(plan.stages),
        "step_seconds": plan.step_seconds,
        "steps": plan.steps,
        "hours": plan.hours,
        "gpus": plan.gpus,
        "gpu_hours": plan.gpu_hours,
    }


def _gib(size: float) -> str:
    gib = size / GIB
    return f"{gib:.1f}" if gib >= 10 else f"{gib:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
