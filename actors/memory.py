"""Measures the peak memory of a worker: device memory on a GPU, else resident memory of its process
and its child processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import psutil

Device = Literal["cpu", "cuda"]


def peak_bytes(device: Device) -> int:
    """Return the peak bytes since the start of the process.

    On "cuda" it is the device memory of this process's tensors. On "cpu" it is the resident memory,
    including shared pages, of this process and its running children. The peaks of the processes
    are added, so the result is an upper bound.
    """
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(_peak_resident(process.pid) for process in processes)


def worker_peak_bytes(worker: object) -> int:
    """Return the peak GPU bytes of a worker process of vLLM, for `collective_rpc`."""
    return peak_bytes("cuda")


def _peak_resident(pid: int) -> int:
    # VmHWM instead of getrusage, whose ru_maxrss survives exec: a child would report the peak of
    # the process that forked it.
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # it ended meanwhile
        return 0
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else 0  # a process that is just ending has none
