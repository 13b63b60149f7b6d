"""What the sections share: device, time, memory, attention."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.gpu_smoke import Check, Setup, Skipped
from benchmarks.report import Row

Found = Iterator[Row | Check | str]
"""What a section yields: rows, checks, and the names of its parts as progress."""


def require(setup: Setup) -> None:
    import torch

    if on_gpu(setup) and not torch.cuda.is_available():
        raise Skipped(f"no CUDA device (torch {torch.__version__})")
    torch.manual_seed(0)
    repeat_groups_if_needed()


def repeat_groups_if_needed() -> str:
    """Give torch's variable-length attention the argument `enable_gqa` where it lacks it (before
    torch 2.12): keys and values are repeated. Returns what was done.
    """
    import inspect

    from torch.nn.attention import varlen

    own = varlen.varlen_attn
    if hasattr(own, "repeats") or "enable_gqa" in inspect.signature(own).parameters:
        return getattr(own, "repeats", "")

    def repeating(
        query: Any, key: Any, value: Any, *rest: Any, enable_gqa: bool = False, **named: Any
    ) -> Any:
        groups = query.shape[1] // key.shape[1]
        if enable_gqa and groups > 1:
            key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        return own(query, key, value, *rest, **named)

    repeating.repeats = "varlen_attn lacks enable_gqa in this torch: keys and values are repeated"
    varlen.varlen_attn = repeating
    return repeating.repeats


def on_gpu(setup: Setup) -> bool:
    return setup.device == "cuda"


def packed_attention(device: str) -> tuple[str, str]:
    """Return the packed attention that runs here in bfloat16, and what differs from the best."""
    import numpy as np
    import torch

    from sppo_ray.models.packed import PACKED, PACKED_SDPA, pack_rows, packed_attention

    states = [torch.randn(1, heads, 8, 64, device=device, dtype=torch.bfloat16) for heads in (2, 1, 1)]
    segments = pack_rows(np.arange(8), np.array([3, 5]), device=device).segments
    try:
        packed_attention(None, *states, None, segments=segments)
    except (ImportError, TypeError, RuntimeError) as error:
        return PACKED_SDPA, f"{type(error).__name__}: {error}"[:300]
    return PACKED, repeat_groups_if_needed()


def at_most(what: str, limit: float, figure: float) -> Check:
    return Check(what, f"<= {limit:g}", figure, figure <= limit)


def wait_for(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def median_seconds(call: Callable[[], Any], device: str, times: int) -> float:
    found = []
    for _ in range(times):
        wait_for(device)
        started = time.perf_counter()
        call()
        wait_for(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def release_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: str) -> float | None:
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None


def allocated_gb(device: str) -> float:
    import torch

    return torch.cuda.memory_allocated() / 1e9 if device == "cuda" else 0.0
