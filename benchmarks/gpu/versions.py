"""Section `versions`: what runs here."""

from __future__ import annotations

from benchmarks.gpu.common import Found, packed_attention, require
from benchmarks.gpu_smoke import Setup
from benchmarks.report import output_of


def versions(setup: Setup) -> Found:
    """The GPU, its driver, and the attention kernels that torch may use."""
    import torch

    require(setup)
    yield {"what": "torch", "value": torch.__version__}
    yield {"what": "threads", "value": torch.get_num_threads()}
    if setup.device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        yield {"what": "GPU", "value": gpu.name}
        yield {"what": "GPU memory, GB", "value": gpu.total_memory / 1e9}
        yield {"what": "compute capability", "value": f"{gpu.major}.{gpu.minor}"}
        driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        yield {"what": "driver", "value": driver}
        yield {"what": "CUDA of torch", "value": torch.version.cuda}
        yield {"what": "NCCL", "value": ".".join(map(str, torch.cuda.nccl.version()))}
        for kernel in ("flash", "mem_efficient", "cudnn", "math"):
            enabled = getattr(torch.backends.cuda, f"{kernel}_sdp_enabled")()
            yield {"what": f"SDPA kernel {kernel}", "value": enabled}
    attention, why = packed_attention(setup.device)
    yield {"what": "attention of packed rows in bfloat16", "value": attention, "difference": why}
