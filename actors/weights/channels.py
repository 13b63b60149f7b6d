"""Sends bytes from rank 0 of a group to all other ranks, each before a deadline.

    GlooChannel     CPU tensors over TCP
    NcclChannel     CUDA tensors, with vLLM's communicator: a GPU for each rank
    SharedChannel   ranks on one GPU (CUDA IPC) or one host (shared memory) copy from rank 0's
                    buffer; gloo carries the signals "full" and "copied"

A group meets at a store that rank 0 opens on a free port. Any failure raises TransferFailed, and
the channel is then of no further use.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import re
import socket
import time
from abc import ABC, abstractmethod
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import (
    AllreduceOptions,
    BroadcastOptions,
    PrefixStore,
    ProcessGroupGloo,
    Store,
    TCPStore,
)

from sppo_ray.protocols import Seat, TransferFailed

POLL_S = 0.0005


class Channel(ABC):
    """One member's end of a group."""

    def __init__(self) -> None:
        self._deadline = float("inf")

    def until(self, seconds: float) -> None:
        """Let all following broadcasts together take `seconds`."""
        self._deadline = time.monotonic() + seconds

    def staging(self, num_bytes: int, device: str) -> Tensor:
        """Return the buffer, [num_bytes] uint8, that rank 0 broadcasts from."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)

    @abstractmethod
    def broadcast(self, chunk: Tensor) -> None:
        """Send `chunk`, uint8, which on rank 0 is a part of `staging`; fill it on other ranks."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group. Waiting members get an error."""

    def _remaining(self) -> float:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TransferFailed("the transfer took longer than its deadline")
        return seconds


def open_store(host: str, timeout_s: float) -> TCPStore:
    """Serve the store of a group on a free port, which it keeps open. For rank 0."""
    return TCPStore(
        host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
    )


def open_channel(
    transport: str, seat: Seat, device: torch.device, *, timeout_s: float, store: Store | None = None
) -> Channel:
    """Join a group and return this member's end. `store`: the open store on rank 0."""
    try:
        reached = store or TCPStore(
            seat.host, seat.port, is_master=False, timeout=timedelta(seconds=timeout_s)
        )
        if transport == "nccl" and device.type == "cuda":
            return NcclChannel(reached, seat, device, timeout_s=timeout_s)
        gloo = GlooChannel(reached, seat, timeout_s=timeout_s)
        return gloo if transport == "nccl" else SharedChannel(gloo, reached, seat, device)
    except (RuntimeError, OSError, ValueError) as error:  # torch raises RuntimeError for the network
        raise TransferFailed(f"the group did not form: {_first_line(error)}") from None


class GlooChannel(Channel):
    def __init__(self, store: Store, seat: Seat, *, timeout_s: float) -> None:
        super().__init__()
        options: Any = ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=timeout_s)
        # by default gloo takes the address that the host name resolves to
        options._devices = [ProcessGroupGloo.create_device(hostname=_own_address(seat.host, seat.port))]
        self._group: Any = ProcessGroupGloo(PrefixStore("gloo", store), seat.rank, seat.size, options)
        self._store = store  # rank 0's serves the others

    def broadcast(self, chunk: Tensor) -> None:
        if self._group is None:
            raise TransferFailed("the group is closed")
        options = BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        options.timeout = timedelta(seconds=self._remaining())
        try:
            self._group.broadcast([chunk], options).wait()
        except RuntimeError as error:
            self.close()
            raise TransferFailed(f"the broadcast broke: {_first_line(error)}") from None

    def gather_signal(self) -> None:
        """Wait until every member has called this."""
        if self._group is None:
            raise TransferFailed("the group is closed")
        options = AllreduceOptions()
        options.timeout = timedelta(seconds=self._remaining())
        try:
            self._group.allreduce([torch.zeros(1)], options).wait()
        except RuntimeError as error:
            self.close()
            raise TransferFailed(f"the broadcast broke: {_first_line(error)}") from None

    def close(self) -> None:
        self._group = self._store = None


class NcclChannel(Channel):
    """Needs CUDA and vLLM; the same in the learner and in an engine."""

    def __init__(self, store: Store, seat: Seat, device: torch.device, *, timeout_s: float) -> None:
        super().__init__()
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.distributed.utils import StatelessProcessGroup
        from vllm.utils.nccl import unpinned_nccl_env

        # NCCL waits without limit for a rank that does not come, so all meet at the store first.
        store.set(f"here/{seat.rank}", "1")
        store.wait([f"here/{rank}" for rank in range(seat.size)], timedelta(seconds=timeout_s))
        group = StatelessProcessGroup(
            rank=seat.rank,
            world_size=seat.size,
            store=PrefixStore("nccl", store),
            data_expiration_seconds=3600,
        )
        with unpinned_nccl_env():
            self._communicator: Any = PyNcclCommunicator(group, device=device)
        if self._communicator.disabled:
            raise ValueError("NCCL is not available")
        self._stream = torch.cuda.Stream(device)
        self._store = store

    def broadcast(self, chunk: Tensor) -> None:
        if self._communicator is None:
            raise TransferFailed("the group is closed")
        self._remaining()
        self._stream.wait_stream(torch.cuda.current_stream())
        self._communicator.broadcast(chunk, src=0, stream=self._stream)
        done = torch.cuda.Event()
        done.record(self._stream)
        # A member that is lost leaves the kernel of the others running, so they abort it.
        while not done.query():
            if time.monotonic() > self._deadline:
                self._abort()
                raise TransferFailed("the broadcast took longer than its deadline and was aborted")
            time.sleep(POLL_S)

    def _abort(self) -> None:
        communicator, self._communicator = self._communicator, None
        communicator.nccl.ncclCommAbort(communicator.comm)
        communicator.available, communicator.disabled = False, True

    def close(self) -> None:
        if self._communicator is not None:
            self._communicator.destroy()
        self._communicator = self._store = None


class SharedChannel(Channel):
    """Rank 0's `staging` is memory that the other ranks map. The bytes are never sent."""

    def __init__(self, gloo: GlooChannel, store: Store, seat: Seat, device: torch.device) -> None:
        super().__init__()
        self._gloo = gloo
        self._store: Store | None = store
        self._rank = seat.rank
        self._device = device
        self._shared: Tensor | None = None
        self._file: int | None = None

    def until(self, seconds: float) -> None:
        super().until(seconds)
        self._gloo.until(seconds)

    def staging(self, num_bytes: int, device: str) -> Tensor:
        if self._shared is None:
            assert self._store is not None
            self._shared, self._file, handle = _share(num_bytes, torch.device(device))
            self._store.set("memory", handle)
        if self._shared.numel() != num_bytes:
            raise TransferFailed("a group shares one buffer, whose size is fixed")
        return self._shared

    def broadcast(self, chunk: Tensor) -> None:
        self._synchronize()
        self._gloo.gather_signal()  # the buffer is full
        if self._rank > 0:
            chunk.copy_(self._mapped()[: chunk.numel()])
            self._synchronize()
        self._gloo.gather_signal()  # all have copied

    def close(self) -> None:
        self._shared = self._store = None
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._gloo.close()

    def _mapped(self) -> Tensor:
        if self._shared is None:
            assert self._store is not None
            try:
                self._shared = _map(self._store.get("memory").decode(), self._device)
            except (OSError, RuntimeError) as error:
                self.close()
                raise TransferFailed(f"the learner's memory cannot be mapped: {error}") from None
        return self._shared

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def place_of(device: torch.device) -> str:
    """Return the GPU of `device`; on a CPU, the host, as far as processes can share memory."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_properties(device).uuid)
    host = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{host} {os.readlink('/proc/self/ns/pid')}"


def _share(num_bytes: int, device: torch.device) -> tuple[Tensor, int | None, str]:
    """Return memory that other processes can map, [num_bytes] uint8, the file that holds it (None
    on a GPU), and how to map it.
    """
    if device.type == "cuda":
        from torch.multiprocessing.reductions import reduce_tensor

        shared = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        _, arguments = reduce_tensor(shared)
        return shared, None, json.dumps([_plain(argument) for argument in arguments])
    # an unnamed file, which disappears with the last process that maps it
    file = os.memfd_create("weights")
    try:
        os.ftruncate(file, num_bytes)
        memory = mmap.mmap(file, num_bytes)
    except OSError:
        os.close(file)
        raise
    shared = torch.frombuffer(memory, dtype=torch.uint8)
    return shared, file, json.dumps([os.getpid(), file, num_bytes])


def _map(handle: str, device: torch.device) -> Tensor:
    if device.type == "cuda":
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        arguments = [_restored(argument) for argument in json.loads(handle)]
        arguments[6] = device.index  # this process's number of the same GPU
        return rebuild_cuda_tensor(*arguments)
    pid, file, num_bytes = json.loads(handle)
    with open(f"/proc/{pid}/fd/{file}", "r+b") as opened:
        return torch.frombuffer(mmap.mmap(opened.fileno(), num_bytes), dtype=torch.uint8)


# Arguments of `rebuild_cuda_tensor` are numbers, bytes and three classes. As JSON instead of a
# pickle they cannot run code.
_CLASSES = {kind.__name__: kind for kind in (torch.Tensor, torch.UntypedStorage)}


def _plain(argument: Any) -> Any:
    if isinstance(argument, bytes):
        return {"bytes": base64.b64encode(argument).decode()}
    if isinstance(argument, type):
        return {"class": argument.__name__}
    if isinstance(argument, torch.dtype):
        return {"dtype": str(argument).removeprefix("torch.")}
    return list(argument) if isinstance(argument, tuple) else argument


def _restored(argument: Any) -> Any:
    if not isinstance(argument, dict):
        return tuple(argument) if isinstance(argument, list) else argument
    ((kind, value),) = argument.items()
    if kind == "bytes":
        return base64.b64decode(value)
    return _CLASSES[value] if kind == "class" else getattr(torch, value)


def _own_address(host: str, port: int) -> str:
    """Return the address of this host from which `host` is reached."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return str(probe.getsockname()[0])


def _first_line(error: Exception) -> str:
    """Return torch's message without the place in its source and without its advice."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[[^]]*\] ", "", line).partition(". This is typically")[0]
