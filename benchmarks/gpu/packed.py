"""Section `packed`: packed rows against separate ones, equality and speed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.common import Found, at_most, median_seconds, peak_gb, release_memory, require, reset_peak
from benchmarks.gpu.models import SHAPES, policy_gradient, random_policy, row_lengths
from benchmarks.gpu_smoke import Setup
from benchmarks.report import Row


def packed(setup: Setup) -> Found:
    """Packed rows against one forward for each row: equality, kernel, speed, memory."""
    import torch

    require(setup)
    for dtype, limit in (("float32", 1e-3), ("bfloat16", 0.15)):
        yield f"equality in {dtype}"
        yield from _equality(setup, dtype, limit)
    if setup.tiny:
        runs = [("tiny", 2, row_lengths(6, 40))]
    else:
        runs = [("1.5B", 28, row_lengths(16, 2048)), ("7B", 14, row_lengths(16, 2048))]
    for name, layers, lengths in runs:
        for checkpointing in (True, False):
            for rows in ("packed", "separate"):
                yield f"{name}, {rows}, checkpointing {checkpointing}"
                options = {"checkpointing": checkpointing, "rows": rows}
                try:
                    yield _speed(setup, name, layers, lengths, **options)
                except torch.OutOfMemoryError:
                    yield {"shape": name, "layers": layers, **options, "error": "out of memory"}
                release_memory()


def _equality(setup: Setup, dtype: str, limit: float) -> Found:
    import torch

    shape = SHAPES["tiny" if setup.tiny else "1.5B"] | {"num_hidden_layers": 2}
    lengths = row_lengths(6, 40 if setup.tiny else 512)
    policy = random_policy(shape, setup.device, dtype, initializer_range=0.05)
    with torch.no_grad():
        together, kernels = _kernels(lambda: _separate_or_packed(policy, lengths, setup.device, "packed"))
        alone, kernels_alone = _kernels(
            lambda: _separate_or_packed(policy, lengths, setup.device, "separate")
        )
    difference = (together - alone).abs()
    yield {
        "what": "packed against separate forwards",
        "dtype": dtype,
        "layers": 2,
        "attention": policy.model.config._attn_implementation,
        "difference_mean": float(difference.mean()),
        "difference_max": float(difference.max()),
        "kernels": kernels,
        "kernels_separate": kernels_alone,
    }
    yield at_most(
        f"packed against separate rows in {dtype}: largest difference of log-probs",
        limit,
        float(difference.max()),
    )


def _speed(
    setup: Setup, shape: str, layers: int, lengths: list[int], *, checkpointing: bool, rows: str
) -> Row:
    """Forward and backward, without an optimizer."""
    release_memory()
    settings = SHAPES[shape] | {"num_hidden_layers": layers}
    policy = random_policy(settings, setup.device, "bfloat16", checkpointing=checkpointing)

    def run() -> None:
        policy.zero_grad()
        if rows == "packed":
            policy_gradient(policy, lengths, setup.device)
        else:
            for length in lengths:
                policy_gradient(policy, [length], setup.device)

    run()
    reset_peak(setup.device)
    seconds = median_seconds(run, setup.device, 2 if setup.tiny else 3)
    tokens = sum(lengths)
    return {
        "shape": shape,
        "layers": layers,
        "checkpointing": checkpointing,
        "rows": rows,
        "attention": policy.model.config._attn_implementation,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "peak_gb": peak_gb(setup.device),
    }


def _separate_or_packed(policy: Any, lengths: list[int], device: str, rows: str) -> Any:
    """Log-probs of all later tokens; `separate` is torch's SDPA with one row a forward."""
    import numpy as np
    import torch

    from sppo_ray.models.packed import PolicyInputs, last_positions, pack_rows

    token_ids = np.random.default_rng(0).integers(4, 400, sum(lengths))
    rows_of = np.split(token_ids, np.cumsum(lengths)[:-1])
    if rows == "packed":
        counts = np.array(lengths)
        positions = last_positions(counts, counts - 1)
        inputs = PolicyInputs(
            pack_rows(token_ids, counts, device=device),
            torch.from_numpy(positions - 1).to(device),
            torch.from_numpy(token_ids[positions]).to(device),
        )
        return policy(inputs, 1.0)[0]
    model, name = policy.model, policy.model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    parts = []
    for row in rows_of:
        ids = torch.from_numpy(row).to(device)
        hidden = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        parts.append(model.get_output_embeddings()(hidden[:-1], ids[1:], 1.0)[0])
    model.set_attn_implementation(name)
    return torch.cat(parts)


def _kernels(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return the result and the names of the attention kernels that ran."""
    from torch.profiler import profile

    with profile() as profiler:
        result = call()
    names = {event.key for event in profiler.key_averages()}
    wanted = re.compile(r"flash|attention|fmha|attn", re.IGNORECASE)
    return result, sorted({name[:100] for name in names if wanted.search(name)})
