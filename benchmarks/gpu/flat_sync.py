"""Section `flat_sync`: weights through the host."""

from __future__ import annotations

import time

from benchmarks.gpu.common import Found, median_seconds, on_gpu, require, wait_for
from benchmarks.gpu.models import SHAPES, parameter_sizes
from benchmarks.gpu_smoke import Check, Setup
from benchmarks.report import Row


def flat_sync(setup: Setup) -> Found:
    """The parts of a weight sync through the host, for a model's parameters in bfloat16."""
    import torch

    require(setup)
    sizes = parameter_sizes(SHAPES["tiny" if setup.tiny else "1.5B"])
    total = sum(sizes)
    source = [torch.randn(size, device=setup.device, dtype=torch.bfloat16) for size in sizes]
    target = [torch.empty_like(tensor) for tensor in source]

    def to_host(buffer: torch.Tensor) -> None:
        for tensor, part in zip(source, buffer.split(sizes), strict=True):
            part.copy_(tensor, non_blocking=buffer.is_pinned())

    def to_device(buffer: torch.Tensor) -> None:
        for tensor, part in zip(target, buffer.split(sizes), strict=True):
            tensor.copy_(part, non_blocking=buffer.is_pinned())

    def row(part: str, seconds: float) -> Row:
        return {
            "part": part,
            "gb": 2 * total / 1e9,
            "seconds": seconds,
            "gb_per_s": 2 * total / 1e9 / seconds,
        }

    for pinned in (False, True) if on_gpu(setup) else (False,):
        kind = "pinned" if pinned else "pageable"
        started = time.perf_counter()
        buffer = torch.empty(total, dtype=torch.bfloat16, pin_memory=pinned)
        to_host(buffer)
        wait_for(setup.device)
        yield row(f"device to host, {kind}, first time", time.perf_counter() - started)
        for name, copy in (("device to host", to_host), ("host to device", to_device)):
            seconds = median_seconds(lambda copy=copy, buffer=buffer: copy(buffer), setup.device, 3)
            yield row(f"{name}, {kind}", seconds)
    equal = all(torch.equal(one, other) for one, other in zip(source, target, strict=True))
    yield Check("weights after device, host, device", "equal", equal, equal)
    try:
        from sppo_ray.rollout.weight_digest import flat_digest
    except ModuleNotFoundError as missing:
        yield {"part": "digest on the host", "skipped": f"{missing.name} is not installed"}
    else:
        flat = buffer.view(torch.uint8).numpy()
        yield row("digest on the host", median_seconds(lambda: flat_digest(flat), "cpu", 3))
