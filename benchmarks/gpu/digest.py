"""Section `digest`: the digest of weights on a device."""

from __future__ import annotations

from benchmarks.gpu.common import Found, allocated_gb, median_seconds, on_gpu, peak_gb, require, reset_peak
from benchmarks.gpu_smoke import Check, Setup


def digest(setup: Setup) -> Found:
    """`device_digest`: equality of devices, GB/s."""
    import torch

    from actors.weights.device_digest import device_digest

    require(setup)
    generator = torch.Generator().manual_seed(0)
    equal = True
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        for size in (1, 1001, 2**16 * 8 + 3, 2**20):
            data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator).to(dtype)
            equal &= device_digest(data) == device_digest(data.to(setup.device))
    yield Check(f"device_digest on the CPU and on {setup.device}", "equal", equal, equal)
    size = 2**22 if setup.tiny else 2**32
    data = torch.randint(0, 256, (size,), dtype=torch.uint8, device=setup.device)
    device_digest(data)
    before = allocated_gb(setup.device)
    reset_peak(setup.device)
    seconds = median_seconds(lambda: device_digest(data), setup.device, 5)
    extra = (peak_gb(setup.device) or 0) - before if on_gpu(setup) else None
    yield {
        "device": setup.device,
        "gb": size / 1e9,
        "seconds": seconds,
        "gb_per_s": size / 1e9 / seconds,
        "peak_gb_above_start": extra,
    }
