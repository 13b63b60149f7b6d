"""Section `ipc`: one tensor in two processes."""

from __future__ import annotations

import pickle
import time
from typing import Any

from benchmarks.gpu.common import Found, require, wait_for
from benchmarks.gpu_smoke import Check, Setup


class TensorHandle:
    """Bytes with which another process of this machine opens a tensor without a copy: CUDA IPC on a
    GPU, shared memory on a CPU. The tensor has to live until the other process has closed it.
    """

    def __init__(self, tensor: Any) -> None:
        from multiprocessing.reduction import ForkingPickler

        import torch.multiprocessing as mp

        mp.set_sharing_strategy("file_system")  # a handle that fits into bytes
        self.payload = bytes(ForkingPickler.dumps(tensor if tensor.is_cuda else tensor.share_memory_()))

    @staticmethod
    def open(payload: bytes) -> Any:
        return pickle.loads(payload)


def ipc(setup: Setup) -> Found:
    """One tensor in two processes: seconds to open it, equality both ways."""
    import torch
    import torch.multiprocessing as mp

    from actors.weights.device_digest import device_digest

    require(setup)
    size = 2**20 if setup.tiny else 2**31
    tensor = torch.randint(0, 256, (size,), dtype=torch.uint8, device=setup.device)
    context = mp.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_ipc_reader, args=(there, setup.device), daemon=True)
    process.start()
    there.close()  # so that recv fails when the second process ends
    yield "start of the second process"
    here.recv()
    started = time.perf_counter()
    handle = TensorHandle(tensor)
    made = time.perf_counter() - started
    here.send(handle.payload)
    opened, found = here.recv()
    yield {
        "device": setup.device,
        "gb": size / 1e9,
        "handle_bytes": len(handle.payload),
        "seconds_make": made,
        "seconds_open": opened,
    }
    expected = device_digest(tensor)
    yield Check("digest of the tensor in the second process", expected, found, found == expected)
    tensor[-1] ^= 255
    wait_for(setup.device)
    here.send("again")
    found, expected = here.recv(), device_digest(tensor)
    yield Check("the same after a write in the first process", expected, found, found == expected)
    here.send("end")
    process.join(20)


def _ipc_reader(connection: Any, device: str) -> None:
    from actors.weights.device_digest import device_digest

    if device == "cuda":
        import torch

        torch.zeros(1, device=device)  # the context of the GPU takes a second
    connection.send("ready")
    payload = connection.recv()
    started = time.perf_counter()
    tensor = TensorHandle.open(payload)
    wait_for(device)
    connection.send((time.perf_counter() - started, device_digest(tensor)))
    connection.recv()
    connection.send(device_digest(tensor))
    connection.recv()
