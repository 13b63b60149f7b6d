"""Section `transports`: one version of the weights by broadcast, learner's sender to engine's
receiver, between two processes. `ipc` on one GPU; `nccl` needs a second GPU and vLLM, and
runs over gloo on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

from benchmarks.gpu.common import Found, on_gpu, require
from benchmarks.gpu.models import SHAPES, parameter_sizes
from benchmarks.gpu_smoke import Check, Setup

HOST, TIMEOUT_S = "127.0.0.1", 60.0


def transports(setup: Setup) -> Found:
    """Seconds of announcing and sending, equality of the digest, for `ipc` and `nccl`."""
    import torch
    import torch.multiprocessing as mp

    from actors.weights.sender import ChunkSender
    from sppo_ray.protocols import Invitation, Seat

    require(setup)
    device = "cuda:0" if on_gpu(setup) else "cpu"
    sizes = parameter_sizes(SHAPES["tiny" if setup.tiny else "1.5B"])
    source = {
        f"p{index}": torch.randn(size, device=device, dtype=torch.bfloat16)
        for index, size in enumerate(sizes)
    }
    chunk_bytes = 2**18 if setup.tiny else 2**28
    for epoch, transport in enumerate(("ipc", "nccl"), start=1):
        other = device
        if transport == "nccl" and on_gpu(setup):
            if torch.cuda.device_count() < 2:
                yield {"transport": "nccl", "skipped": "NCCL needs a GPU for each process"}
                continue
            other = "cuda:1"
        sender = ChunkSender(
            lambda: iter(source.items()), dtype="bfloat16", device=setup.device, is_first=True
        )
        context = mp.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_receive, args=(there, other), daemon=True)
        process.start()
        there.close()
        yield f"start of the second process for {transport}"
        here.recv()
        host, port = sender.open_store(HOST, TIMEOUT_S)
        here.send(Invitation(epoch, transport, chunk_bytes, TIMEOUT_S, (Seat(host, port, 1, 2),)))
        started = time.perf_counter()
        failure = sender.join(epoch, transport, 2, TIMEOUT_S)
        joined = time.perf_counter() - started
        yield Check(f"{transport}: failure of forming a group", "none", failure or "none", not failure)
        if failure:
            process.kill()
            continue
        sender.announce(0, chunk_bytes)
        for version in (1, 2):
            started = time.perf_counter()
            manifest = sender.announce(version, chunk_bytes)
            announced = time.perf_counter() - started
            here.send((manifest, epoch))
            started = time.perf_counter()
            failure = sender.send(version, epoch, TIMEOUT_S)
            sent = time.perf_counter() - started
            digest, count = here.recv()
            yield {
                "transport": transport,
                "gb": 2 * sum(sizes) / 1e9,
                "seconds_join": joined,
                "seconds_announce": announced,
                "seconds_send": sent,
            }
            is_equal = not failure and digest == manifest.digest and count == len(sizes)
            what = f"{transport}: digest and number of tensors in the second process"
            yield Check(what, manifest.digest, failure or digest, is_equal)
        here.send(None)
        sender.leave()
        process.join(20)


def _receive(connection: Any, device: str) -> None:
    """A stand-in for an engine: loads what arrives into tensors of its own."""
    import torch

    from actors.weights.chunk_receiver import ChunkReceiver, Incoming
    from actors.weights.layout import spans

    receiver = ChunkReceiver(torch.device(device), 0)
    parameters: dict[str, torch.Tensor] = {}

    def load(named: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in named:
            parameters[name].copy_(tensor)

    connection.send("ready")
    receiver.join(connection.recv())
    while (asked := connection.recv()) is not None:
        manifest, epoch = asked
        for name, shape in zip(manifest.names, manifest.shapes, strict=True):
            if name not in parameters:
                parameters[name] = torch.empty(math.prod(shape), dtype=torch.bfloat16, device=device)
        layout = spans(manifest.names, manifest.shapes, manifest.offsets, manifest.dtype, manifest.num_bytes)
        shapes = dict(zip(manifest.names, manifest.shapes, strict=True))
        incoming = Incoming(manifest.version, epoch, shapes, layout, torch.bfloat16)
        receiver.receive(incoming, lambda: None, load)
        assert receiver.load is not None
        connection.send((receiver.load.digest(), receiver.load.ledger.num_loaded(1)))
