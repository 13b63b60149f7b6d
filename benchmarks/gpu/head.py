"""Section `head`: the log-prob head."""

from __future__ import annotations

import math

from benchmarks.gpu.common import (
    Found,
    allocated_gb,
    at_most,
    median_seconds,
    on_gpu,
    peak_gb,
    require,
    reset_peak,
)
from benchmarks.gpu_smoke import Setup


def head(setup: Setup) -> Found:
    """Seconds and memory of the log-prob head, by the number of logits in memory."""
    import torch
    from torch import nn

    from sppo_ray.models.policy import LogprobHead

    require(setup)
    vocabulary, hidden_size, tokens = (2048, 32, 512) if setup.tiny else (152_064, 3584, 16_384)
    chunks = (2**16, 2**18) if setup.tiny else (2**26, 2**28)
    dtype = torch.bfloat16
    linear = nn.Linear(hidden_size, vocabulary, bias=False, device=setup.device, dtype=dtype)
    hidden = torch.randn(tokens, hidden_size, device=setup.device, dtype=dtype, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,), device=setup.device)
    results = []
    for max_logits in chunks:
        module = LogprobHead(linear, max_logits)

        def run(module: LogprobHead = module) -> torch.Tensor:
            hidden.grad = module.weight.grad = None
            logprobs, _ = module(hidden, targets, 1.0)
            logprobs.sum().backward()
            return logprobs.detach()

        results.append(run())
        hidden.grad = module.weight.grad = None
        before = allocated_gb(setup.device)
        reset_peak(setup.device)
        yield {
            "vocabulary": vocabulary,
            "hidden": hidden_size,
            "tokens": tokens,
            "max_logits": f"2^{int(math.log2(max_logits))}",
            "tokens_a_chunk": module.rows_per_chunk,
            "seconds": median_seconds(run, setup.device, 3),
            "peak_gb_above_start": (peak_gb(setup.device) or 0) - before if on_gpu(setup) else None,
        }
    difference = float((results[0] - results[1]).abs().max())
    yield at_most("log-probs of both chunk sizes: largest difference", 0.05, difference)
