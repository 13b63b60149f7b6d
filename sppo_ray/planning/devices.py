"""Devices and clusters that a plan is made for.

Memory is what `torch.cuda.mem_get_info` calls total, a little less than the name says. Speed and
bandwidth are the vendor's: dense bfloat16, without sparsity.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sppo_ray.errors import UserError
from sppo_ray.planning.resources import Resources

GIB = 2**30
GPUS_PER_NODE = 8


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or the CPUs of a machine ("cpu", whose speed is that of one core)."""

    name: str
    kind: Literal["cuda", "cpu"]
    memory: int  # bytes
    flops: float  # dense bfloat16 FLOP/s of a GPU, float32 FLOP/s of a core
    bandwidth: float  # bytes/s of its memory
    host_link: float  # bytes/s to host memory, one direction


def _gpu(name: str, gib: float, tflops: float, tbytes: float, link: float) -> Device:
    return Device(name, "cuda", int(gib * GIB), tflops * 1e12, tbytes * 1e12, link * 1e9)


# NVIDIA's data sheets: A100 (2021), L40S and H100 SXM (2023), H200 SXM, H20 (2024), B200 (2025).
# Host link: PCIe 4 x16 = 32 GB/s, PCIe 5 x16 = 64 GB/s.
GPUS = {
    device.name: device
    for device in (
        _gpu("A100-40", 39.4, 312, 1.555, 32),
        _gpu("A100-80", 79.2, 312, 2.039, 32),
        _gpu("L40S", 44.4, 362, 0.864, 32),
        _gpu("H20", 95.0, 148, 4.0, 64),
        _gpu("H100", 79.1, 989, 3.35, 64),
        _gpu("H200", 139.8, 989, 4.8, 64),
        _gpu("B200", 178.3, 2250, 8.0, 64),
    )
}
ALIASES = {"A100": "A100-80", "A100-40G": "A100-40", "A100-80G": "A100-80"}
"""Other names, among them those of Ray's resource `accelerator_type:`."""
CPU = Device("cpu", "cpu", 0, 40e9, 15e9, 15e9)
"""A core of a server CPU: 40 GFLOP/s in float32 matrix products (AVX2), 15 GB/s of memory."""

CPUS_A_GPU, HOST_GIB_A_GPU = 16, 128
"""Of a described node, for each GPU, unless said otherwise; DGX machines have twice as much."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster."""

    cpus: float
    gpus: int
    memory: int  # bytes of host memory; 0 = not known

    @property
    def resources(self) -> Resources:
        return Resources(self.cpus, self.gpus)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Machines with one kind of device."""

    device: Device
    nodes: tuple[Node, ...]

    @property
    def num_gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    @property
    def text(self) -> str:
        nodes = f" on {len(self.nodes)} nodes" if len(self.nodes) > 1 else ""
        if self.device.kind == "cpu":
            cpus = sum(node.cpus for node in self.nodes)
            memory = f", {self.nodes[0].memory / GIB:.1f} GiB a node" if self.nodes[0].memory else ""
            return f"{cpus:g} CPUs{nodes}{memory}"
        memory = f" and {self.nodes[0].memory / GIB:.0f} GiB of host memory" if self.nodes[0].memory else ""
        return (
            f"{self.num_gpus}x{self.device.name}{nodes}, {self.device.memory / GIB:.1f} GiB a GPU, "
            f"{self.nodes[0].cpus:g} CPUs{memory} a node"
        )


def parse_gpus(text: str, *, cpus: float | None = None, host_gib: float | None = None) -> Cluster:
    """Return the cluster of "8xH100", with at most 8 GPUs a node.

    Args:
        cpus: CPUs of a node; None = 16 a GPU.
        host_gib: host memory of a node in GiB; None = 128 a GPU.

    Raises:
        UserError: another form, or an unknown device.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([\w-]+)", text.strip(), re.IGNORECASE)
    device = match and find_gpu(match[2])
    count = int(match[1] or 1) if match else 0
    if not device or not count:
        raise UserError(f"--gpus {text}: write it as 8xH100; known devices: {', '.join(GPUS)}")
    node = _node(min(count, GPUS_PER_NODE), cpus, host_gib)
    whole, rest = divmod(count, GPUS_PER_NODE)
    nodes = [node] * whole + ([_node(rest, cpus, host_gib)] if rest else [])
    return Cluster(device, tuple(nodes))


def find_gpu(name: str) -> Device | None:
    """Return the device of a name such as "H100", "A100-40" or "NVIDIA H100 80GB HBM3"."""
    upper = name.strip().upper()
    if exact := GPUS.get(ALIASES.get(upper, upper)):
        return exact
    if "A100" in upper and "40GB" in upper:
        return GPUS["A100-40"]
    words = re.split(r"[\s_-]+", upper)
    return next((GPUS[ALIASES.get(word, word)] for word in words if ALIASES.get(word, word) in GPUS), None)


def _node(gpus: int, cpus: float | None, host_gib: float | None) -> Node:
    memory = HOST_GIB_A_GPU * gpus if host_gib is None else host_gib
    return Node(CPUS_A_GPU * gpus if cpus is None else cpus, gpus, int(memory * GIB))


def this_machine(local_cpus: int | None = None) -> Cluster:
    """Return this machine as a cluster of one node: its GPUs if there are known ones, else its
    CPUs.
    """
    cpus = float(local_cpus or os.cpu_count() or 1)
    device, count = local_gpus()
    node = Node(cpus, count, machine_memory())
    return Cluster(device or replace(CPU, memory=node.memory), (node,))


def machine_memory() -> int:
    """Return the memory of this machine, or of its control group if that is less, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def local_gpus() -> tuple[Device | None, int]:
    """Return the kind and number of this machine's GPUs; (None, 0) without a known one."""
    if shutil.which("nvidia-smi") is None:
        return None, 0
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None, 0
    rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line]
    device = find_gpu(rows[0][0]) if rows and not done.returncode else None
    return (device, len(rows)) if device else (None, 0)


def ray_cluster(nodes: Sequence[Resources]) -> Cluster | None:
    """Return the cluster of Ray's nodes, whose host memory is not known; None when their GPUs are
    of unknown or different kinds.
    """
    kinds = {node.accelerator for node in nodes if node.gpus > 0}
    device = CPU if not kinds else find_gpu(min(kinds))
    if device is None or len(kinds) > 1:
        return None
    return Cluster(device, tuple(Node(node.cpus, int(node.gpus), 0) for node in nodes))
