"""Section `numerics`: the packed path on each device and in each data type."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.common import Found, at_most, on_gpu, require
from benchmarks.gpu.models import SHAPES, policy_gradient, random_policy, row_lengths
from benchmarks.gpu_smoke import Setup
from benchmarks.report import Row


def numerics(setup: Setup) -> Found:
    """Log-probs, loss and gradient of the packed path, in other dtypes and on the GPU, against the
    CPU in float32.
    """
    import torch

    require(setup)
    shape = SHAPES["tiny" if setup.tiny else "150M"]
    lengths = row_lengths(6, 24 if setup.tiny else 256)
    variants = [("cpu", "float32"), ("cpu", "bfloat16")]
    if on_gpu(setup):
        variants += [("cuda", "float32"), ("cuda", "bfloat16")]
    for family in ("llama", "qwen2"):
        state: dict[str, Any] = {}
        found: dict[tuple[str, str], Row] = {}
        for device, dtype in variants:
            yield f"{family} on {device} in {dtype}"
            policy = random_policy(shape, device, dtype, family=family, initializer_range=0.05)
            if not state:
                _draw_biases(policy.model)  # 0 at first, which would hide one that is not applied
                state = {name: value.clone() for name, value in policy.model.state_dict().items()}
            policy.model.load_state_dict(state)
            logprobs, loss = policy_gradient(policy, lengths, device)
            logprobs = logprobs.cpu()
            gradient = torch.cat([p.grad.float().cpu().reshape(-1) for p in policy.parameters()])
            if not found:
                expected, expected_gradient = logprobs, gradient
            difference = (logprobs - expected).abs()
            found[device, dtype] = row = {
                "family": family,
                "device": device,
                "dtype": dtype,
                "attention": policy.model.config._attn_implementation,
                "logprob_std": float(logprobs.std()),
                "difference_mean": float(difference.mean()),
                "difference_max": float(difference.max()),
                "loss": float(loss),
                "grad_norm": float(gradient.norm()),
                "grad_difference": float((gradient - expected_gradient).norm() / expected_gradient.norm()),
            }
            yield row
        yield from _numeric_checks(family, found)


def _numeric_checks(family: str, found: dict[tuple[str, str], Row]) -> Found:
    """Rounding to bfloat16 sets the limits of bfloat16 on a GPU: it may differ from float32 by
    half as much again as bfloat16 on the CPU.
    """
    rounding = found["cpu", "bfloat16"]
    limits = {("cpu", "bfloat16"): (0.15, 0.2), ("cuda", "float32"): (1e-4, 1e-3)}
    limits["cuda", "bfloat16"] = (1.5 * rounding["difference_mean"], 1.5 * rounding["grad_difference"])
    for (device, dtype), row in found.items():
        if (device, dtype) == ("cpu", "float32"):
            continue
        where = f"{family}, {device} in {dtype} against the CPU in float32"
        mean, gradient = limits[device, dtype]
        yield at_most(f"{where}: mean difference of log-probs", mean, row["difference_mean"])
        yield at_most(f"{where}: relative difference of gradients", gradient, row["grad_difference"])


def _draw_biases(model: Any) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
