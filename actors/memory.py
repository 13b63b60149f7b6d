"""Peak memory of a worker: the device's where it has one, else the resident memory of its process and those below it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import psutil

Device = Literal["cpu", "cuda"]


def peak_bytes(device: Device) -> int:
    """Bytes at the highest, since the process started.

    On "cuda" what this process's tensors took of its device. On "cpu" the resident memory, shared pages counted, of this
    process and of its children that live now (each one's own highest, so the sum is an upper bound).
    """
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(_peak_resident(process.pid) for process in processes)


def worker_peak_bytes(worker: object) -> int:
    """For vLLM's `collective_rpc`: what one worker process of an engine took of its GPU."""
    return peak_bytes("cuda")


def _peak_resident(pid: int) -> int:
    # VmHWM and not getrusage: its ru_maxrss survives exec, so that a small child shows the size of what forked it.
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # it ended meanwhile
        return 0
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else 0  # a process that is just ending has none
