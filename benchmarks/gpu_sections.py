"""The sections of `benchmarks.gpu_smoke`. Each imports what it needs itself."""

from __future__ import annotations

import gc
import json
import math
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_smoke import Check, Setup, Skipped
from benchmarks.report import Row, output_of

Found = Iterator[Row | Check | str]

_NAMES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_NAMES += ("num_key_value_heads", "tie_word_embeddings")
SHAPES: dict[str, dict[str, Any]] = {
    name: dict(zip(_NAMES, values, strict=True))
    for name, values in {
        "tiny": (512, 64, 128, 2, 2, 1, True),
        "150M": (32_768, 1024, 4096, 8, 16, 4, True),
        "1.5B": (151_936, 1536, 8960, 28, 12, 2, True),  # Qwen2.5's
        "7B": (152_064, 3584, 18_944, 28, 28, 4, False),
    }.items()
}
MAX_TOKENS = 10_000  # of a row


# ----------------------------------------------------------------------------------- versions


def versions(setup: Setup) -> Found:
    """The GPU, its driver, and the attention kernels that torch may use."""
    import torch

    _require(setup)
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
    attention, why = _packed_attention(setup.device)
    yield {"what": "attention of packed rows in bfloat16", "value": attention, "difference": why}


# ----------------------------------------------------------------------------------- numerics


def numerics(setup: Setup) -> Found:
    """Log-probs, loss and gradient of the packed path, in other dtypes and on the GPU, against the
    CPU in float32.
    """
    import torch

    _require(setup)
    shape = SHAPES["tiny" if setup.tiny else "150M"]
    lengths = _lengths(6, 24 if setup.tiny else 256)
    variants = [("cpu", "float32"), ("cpu", "bfloat16")]
    if _on_gpu(setup):
        variants += [("cuda", "float32"), ("cuda", "bfloat16")]
    for family in ("llama", "qwen2"):
        state: dict[str, Any] = {}
        found: dict[tuple[str, str], Row] = {}
        for device, dtype in variants:
            yield f"{family} on {device} in {dtype}"
            policy = _policy(shape, device, dtype, family=family, initializer_range=0.05)
            if not state:
                _draw_biases(policy.model)  # 0 at first, which would hide one that is not applied
                state = {name: value.clone() for name, value in policy.model.state_dict().items()}
            policy.model.load_state_dict(state)
            logprobs, loss = _policy_gradient(policy, lengths, device)
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
        yield _at_most(f"{where}: mean difference of log-probs", mean, row["difference_mean"])
        yield _at_most(f"{where}: relative difference of gradients", gradient, row["grad_difference"])


# ------------------------------------------------------------------------------------- packed


def packed(setup: Setup) -> Found:
    """Packed rows against one forward for each row: equality, kernel, speed, memory."""
    import torch

    _require(setup)
    for dtype, limit in (("float32", 1e-3), ("bfloat16", 0.15)):
        yield f"equality in {dtype}"
        yield from _equality(setup, dtype, limit)
    if setup.tiny:
        runs = [("tiny", 2, _lengths(6, 40))]
    else:
        runs = [("1.5B", 28, _lengths(16, 2048)), ("7B", 14, _lengths(16, 2048))]
    for name, layers, lengths in runs:
        for checkpointing in (True, False):
            for rows in ("packed", "separate"):
                yield f"{name}, {rows}, checkpointing {checkpointing}"
                options = {"checkpointing": checkpointing, "rows": rows}
                try:
                    yield _speed(setup, name, layers, lengths, **options)
                except torch.OutOfMemoryError:
                    yield {"shape": name, "layers": layers, **options, "error": "out of memory"}
                _free()


def _equality(setup: Setup, dtype: str, limit: float) -> Found:
    import torch

    shape = SHAPES["tiny" if setup.tiny else "1.5B"] | {"num_hidden_layers": 2}
    lengths = _lengths(6, 40 if setup.tiny else 512)
    policy = _policy(shape, setup.device, dtype, initializer_range=0.05)
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
    yield _at_most(
        f"packed against separate rows in {dtype}: largest difference of log-probs",
        limit,
        float(difference.max()),
    )


def _speed(
    setup: Setup, shape: str, layers: int, lengths: list[int], *, checkpointing: bool, rows: str
) -> Row:
    """Forward and backward, without an optimizer."""
    _free()
    settings = SHAPES[shape] | {"num_hidden_layers": layers}
    policy = _policy(settings, setup.device, "bfloat16", checkpointing=checkpointing)

    def run() -> None:
        policy.zero_grad()
        if rows == "packed":
            _policy_gradient(policy, lengths, setup.device)
        else:
            for length in lengths:
                _policy_gradient(policy, [length], setup.device)

    run()
    _reset_peak(setup.device)
    seconds = _median_seconds(run, setup.device, 2 if setup.tiny else 3)
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
        "peak_gb": _peak_gb(setup.device),
    }


# --------------------------------------------------------------------------------------- head


def head(setup: Setup) -> Found:
    """Seconds and memory of the log-prob head, by the number of logits in memory."""
    import torch
    from torch import nn

    from sppo_ray.models.policy import LogprobHead

    _require(setup)
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
        before = _allocated(setup.device)
        _reset_peak(setup.device)
        yield {
            "vocabulary": vocabulary,
            "hidden": hidden_size,
            "tokens": tokens,
            "max_logits": f"2^{int(math.log2(max_logits))}",
            "tokens_a_chunk": module.rows_per_chunk,
            "seconds": _median_seconds(run, setup.device, 3),
            "peak_gb_above_start": (_peak_gb(setup.device) or 0) - before if _on_gpu(setup) else None,
        }
    difference = float((results[0] - results[1]).abs().max())
    yield _at_most("log-probs of both chunk sizes: largest difference", 0.05, difference)


# ---------------------------------------------------------------------------------- flat_sync


def flat_sync(setup: Setup) -> Found:
    """The parts of a weight sync through the host, for a model's parameters in bfloat16."""
    import torch

    _require(setup)
    sizes = _parameter_sizes(SHAPES["tiny" if setup.tiny else "1.5B"])
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

    for pinned in (False, True) if _on_gpu(setup) else (False,):
        kind = "pinned" if pinned else "pageable"
        started = time.perf_counter()
        buffer = torch.empty(total, dtype=torch.bfloat16, pin_memory=pinned)
        to_host(buffer)
        _wait(setup.device)
        yield row(f"device to host, {kind}, first time", time.perf_counter() - started)
        for name, copy in (("device to host", to_host), ("host to device", to_device)):
            seconds = _median_seconds(lambda copy=copy, buffer=buffer: copy(buffer), setup.device, 3)
            yield row(f"{name}, {kind}", seconds)
    equal = all(torch.equal(one, other) for one, other in zip(source, target, strict=True))
    yield Check("weights after device, host, device", "equal", equal, equal)
    try:
        from sppo_ray.rollout.weight_digest import flat_digest
    except ModuleNotFoundError as missing:
        yield {"part": "digest on the host", "skipped": f"{missing.name} is not installed"}
    else:
        flat = buffer.view(torch.uint8).numpy()
        yield row("digest on the host", _median_seconds(lambda: flat_digest(flat), "cpu", 3))


# ------------------------------------------------------------------------------------- digest


def digest(setup: Setup) -> Found:
    """`device_digest`: equality of devices, GB/s."""
    import torch

    from actors.weights.device_digest import device_digest

    _require(setup)
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
    before = _allocated(setup.device)
    _reset_peak(setup.device)
    seconds = _median_seconds(lambda: device_digest(data), setup.device, 5)
    extra = (_peak_gb(setup.device) or 0) - before if _on_gpu(setup) else None
    yield {
        "device": setup.device,
        "gb": size / 1e9,
        "seconds": seconds,
        "gb_per_s": size / 1e9 / seconds,
        "peak_gb_above_start": extra,
    }


# ---------------------------------------------------------------------------------------- ipc


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

    _require(setup)
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
    _wait(setup.device)
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
    _wait(device)
    connection.send((time.perf_counter() - started, device_digest(tensor)))
    connection.recv()
    connection.send(device_digest(tensor))
    connection.recv()


def transports(setup: Setup) -> Found:
    """A version of the weights by broadcast, between two processes (`gpu_transports.py`)."""
    from benchmarks.gpu_transports import transports as broadcasts

    yield from broadcasts(setup)


# ------------------------------------------------------------------------------------ learner


def learner(setup: Setup) -> Found:
    """One LearnerRank in bfloat16: update, save, load, export, weights of a sync."""
    import numpy as np
    import torch

    import actors.learner
    from sppo_ray.algorithms.sppo import SPPOSettings
    from sppo_ray.config import LearnerSettings
    from sppo_ray.models.packed import PACKED, sequence_inputs
    from sppo_ray.models.policy import load_policy

    _require(setup)
    folder = Path(tempfile.mkdtemp())
    _save_checkpoint(SHAPES["tiny" if setup.tiny else "150M"], folder / "model")
    settings = LearnerSettings(
        model=str(folder / "model"),
        dtype="bfloat16",
        attention="auto" if _packed_attention(setup.device)[0] == PACKED else "sdpa",
        gradient_checkpointing=True,
        gpus_per_rank=float(_on_gpu(setup)),
        optimizer={"lr": 1e-3},
    )
    rank = actors.learner.LearnerRank(
        0,
        1,
        settings,
        model_path=str(folder / "model"),
        algorithm=SPPOSettings(),
        temperature=1.0,
        max_response_tokens=512,
        total_updates=10,
        seed=0,
        sync_dtype="bfloat16",
    )
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = call(*arguments)
        _wait(setup.device)
        seconds[name] = time.perf_counter() - started
        return result

    yield "setup"
    started = timed("setup", lambda: rank.setup(*rank.address()))
    lengths = _lengths(8, 24 if setup.tiny else 1024)
    batch = _micro_batch(lengths, 30)
    batch = replace(batch, old_logprobs=rank.logprobs([batch])[0])
    first = rank.logprobs([batch])[0]
    yield "update"
    counts = (len(first), len(lengths))
    timed("update, first", rank.update, [batch], *counts)
    metrics = timed("update", rank.update, [batch], *counts)
    yield {"what": "setup", **started, "attention": settings.attention}
    yield {"what": "update", **{name: metrics[name] for name in ("loss", "grad_norm", "lr", "skipped")}}
    yield "save and load"
    after = rank.logprobs([batch])[0]
    timed("save", rank.save, folder / "state")
    rank.update([batch], *counts)
    moved = rank.logprobs([batch])[0]
    timed("load", rank.load, folder / "state")
    again = rank.logprobs([batch])[0]
    changed = bool((first != after).any() and (after != moved).any())
    yield Check("updates change the log-probs", "changed", changed, changed)
    yield _at_most(
        "log-probs after save, update, load: largest difference", 0.0, float(abs(again - after).max())
    )
    yield "sync and export"
    manifest, flat, probe = timed("flat_weights", rank.flat_weights, 1)
    timed("export", rank.export, folder / "export", folder / "model")
    exported = load_policy(folder / "export", dtype="bfloat16", attention=settings.attention)
    inputs = sequence_inputs(np.array(probe[0]), device=setup.device)
    own, _ = exported.to(setup.device)(inputs, 1.0)
    difference = float((own.detach().cpu() - torch.tensor(probe[1])).abs().max())
    yield _at_most("log-probs of the export against the probe: largest difference", 0.05, difference)
    yield {"what": "bytes of a sync", "parameters": len(manifest.names), "gb": flat.nbytes / 1e9}
    yield {"what": "memory", "peak_gb": rank.memory() / 1e9}
    for name, spent in seconds.items():
        yield {"what": name, "seconds": spent}
    rank.close()


# ------------------------------------------------------------------------------------ offload


def offload(setup: Setup) -> Found:
    """ZeRO-2 in bfloat16: bytes a parameter on device and host, and states moved to the host."""
    import psutil
    import torch

    from actors.deepspeed import TrainingEngine, join_group, open_store
    from sppo_ray.config import LearnerSettings

    _require(setup)
    shape = SHAPES["tiny"] | {"vocab_size": 4096} if setup.tiny else SHAPES["1.5B"] | {"num_hidden_layers": 8}
    lengths = _lengths(4, 24 if setup.tiny else 512)
    join_group(0, 1, device=setup.device, store=open_store("127.0.0.1"))
    # first with offload: states that were moved to the host leave pinned memory for later engines
    for on_host in (True, False):
        if on_host and not _on_gpu(setup):
            yield {"offload_optimizer": True, "skipped": "needs a CUDA device"}
            continue
        yield f"ZeRO-2, offload_optimizer {on_host}"
        settings = LearnerSettings(
            model="none",
            dtype="bfloat16",
            zero_stage=2,
            offload_optimizer=on_host,
            gpus_per_rank=float(_on_gpu(setup)),
        )
        policy = _policy(shape, setup.device, "bfloat16")
        _policy_gradient(policy, lengths, setup.device)  # what the kernels allocate once
        policy.zero_grad()
        _free()
        host, free, device = _host_bytes(), psutil.virtual_memory().available, _allocated(setup.device)
        engine = TrainingEngine(policy, settings, device=setup.device, world_size=1)

        def step(engine: TrainingEngine = engine) -> None:
            _policy_gradient(engine, lengths, setup.device, backward=engine.backward)
            engine.step(1e-6)

        step()
        count = engine.num_parameters
        row = {
            "offload_optimizer": on_host,
            "parameters": count,
            "layers": shape["num_hidden_layers"],
            "seconds_step": _median_seconds(step, setup.device, 2),
        }
        if not setup.tiny:  # a tiny model is lost in what the process itself needs
            row |= {
                "host_bytes_a_parameter": (_host_bytes() - host) / count,
                "host_bytes_a_parameter_of_system": (free - psutil.virtual_memory().available) / count,
                # 2: the weights, allocated before
                "device_bytes_a_parameter": 2 + (_allocated(setup.device) - device) * 1e9 / count,
            }
        yield row
        if on_host and not setup.tiny:
            figure = row["host_bytes_a_parameter"]
            yield Check(
                "host bytes a parameter of ZeRO-2 with offload", "18 +- 1", figure, abs(figure - 18) <= 1
            )
        elif _on_gpu(setup) and not on_host:
            yield from _moved_states(engine, setup.device, step)
        elif not _on_gpu(setup):
            yield {"what": "offload_states", "skipped": "needs a CUDA device"}
        engine.close()
        del engine, policy, step
        _free()
    torch.distributed.destroy_process_group()


def _moved_states(engine: Any, device: str, step: Callable[[], None]) -> Found:
    """Move optimizer, master weights and then the weights to the host and back."""
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as States

    kinds = {"optimizer and master weights": [States.optim_states, States.hp_params], "all states": None}
    for what, states in kinds.items():
        yield f"offload_states, {what}"
        arguments = {} if states is None else {"include": states}
        before = _allocated(device)
        started = time.perf_counter()
        engine._engine.offload_states(**arguments)
        _wait(device)
        out = time.perf_counter() - started
        _free()
        moved = before - _allocated(device)
        started = time.perf_counter()
        engine._engine.reload_states()
        _wait(device)
        back = time.perf_counter() - started
        yield {"what": f"offload_states: {what}", "gb": moved, "seconds_out": out, "seconds_back": back}
    step()


# ------------------------------------------------------------------------------------- engine


def engine(setup: Setup) -> Found:
    """vLLM with the arguments of a rollout worker: tokens/s, sleep and wake."""
    import os

    import torch

    from actors.rollout import rollout_env
    from sppo_ray.config import RolloutSettings

    _require(setup)
    shape, requests, tokens = ("tiny", 8, 32) if setup.tiny else ("1.5B", 256, 512)
    options: dict[str, Any] = (
        {"kv_cache_gib": 0.25}
        if not _on_gpu(setup)
        else {"dtype": "bfloat16", "enforce_eager": False, "gpu_memory_utilization": 0.5}
    )
    settings = RolloutSettings(max_sequences=requests, **options)
    os.environ.update(rollout_env(settings, setup.device))
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

    from actors.vllm_engine import engine_args
    from actors.vllm_plugin import register

    register()
    folder = Path(tempfile.mkdtemp())
    _save_checkpoint(SHAPES[shape] | ({"head_dim": 32} if setup.tiny else {}), folder)
    yield "start of the engine"
    started = time.perf_counter()
    described = engine_args(
        settings, model_path=str(folder), max_model_len=tokens + 64, seed=0, device=setup.device
    )
    described.enable_sleep_mode = _on_gpu(setup)
    llm = LLMEngine.from_engine_args(described)
    yield {"what": "start", "seconds": time.perf_counter() - started}
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False, seed=0)

    def generate(count: int, name: str) -> list[tuple[int, ...]]:
        for index in range(count):
            prompt = {"prompt_token_ids": [4 + (index + i) % 30 for i in range(16)]}
            llm.add_request(f"{name}-{index}", prompt, sampling)
        done: dict[str, tuple[int, ...]] = {}
        while llm.has_unfinished_requests():
            for output in llm.step():
                if output.finished:
                    done[output.request_id] = tuple(output.outputs[0].token_ids)
        return [done[key] for key in sorted(done)]

    yield "generation"
    generate(2, "warm")
    started = time.perf_counter()
    before = generate(requests, "first")
    seconds = time.perf_counter() - started
    generated = sum(map(len, before))
    yield {
        "what": "generation",
        "shape": shape,
        "requests": requests,
        "tokens": generated,
        "seconds": seconds,
        "tokens_per_s": generated / seconds,
    }
    if not _on_gpu(setup):
        yield {"what": "sleep and wake", "skipped": "needs a CUDA device"}
        return
    for level in (1, 2):
        yield f"sleep, level {level}"
        _wait(setup.device)
        free = torch.cuda.mem_get_info()[0]
        started = time.perf_counter()
        llm.sleep(level, mode="keep")
        slept, freed = time.perf_counter() - started, torch.cuda.mem_get_info()[0] - free
        started = time.perf_counter()
        llm.wake_up()
        _wait(setup.device)
        yield {
            "what": f"sleep, level {level}",
            "gb": freed / 1e9,
            "seconds_sleep": slept,
            "seconds_wake": time.perf_counter() - started,
        }
        if level == 1:  # level 2 drops the weights
            same = generate(requests, "again") == before
            yield {"what": "the same tokens after level 1", "value": same}


# ---------------------------------------------------------------------------------- colocated


def colocated(setup: Setup) -> Found:
    """Three steps of the quickstart with engine, learner and critic in turns on one device."""
    import deepspeed  # noqa: F401
    import ray  # noqa: F401
    import vllm  # noqa: F401

    _require(setup)
    run_dir = Path(tempfile.mkdtemp()) / "run"
    settings = ["cluster.layout=colocated", "loop.steps=3", "eval.every=0", "checkpoint.every=2"]
    settings += [f"device={setup.device}", "data.prompts_per_step=64", "data.minibatch_size=32"]
    if _on_gpu(setup):
        shares = ("rollout.gpus_per_worker=1", "learner.gpus_per_rank=1", "critic.gpus_per_rank=1")
        settings += [*shares, "rollout.kv_cache_gib=2", "cluster.local_cpus=8"]
    command = [sys.executable, "-m", "sppo_ray", "train", "quickstart", "--run-dir", str(run_dir)]
    yield "a run of three steps"
    done = subprocess.run(
        [*command, *(f"--{setting}" for setting in settings)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in steps if "seconds/turn" in row]
    for row in steps:
        stages = ("generate-wait", "turn", "update", "critic-wait", "sync")
        yield {"step": row["step"]} | {stage: row[f"seconds/{stage}"] for stage in stages}
    yield _at_most("steps that are missing", 0, 3 - len(steps))
    # an engine that had kept stale memory would differ by much more, or be NaN
    limit = 0.2 if _on_gpu(setup) else 1e-3
    worst = max(row["mismatch/first_batch_difference"] for row in steps)
    yield _at_most("log-prob difference of engine and learner after each sleep", limit, worst)


# ------------------------------------------------------------------------------------ helpers


def _require(setup: Setup) -> None:
    import torch

    if _on_gpu(setup) and not torch.cuda.is_available():
        raise Skipped(f"no CUDA device (torch {torch.__version__})")
    torch.manual_seed(0)
    _repeat_groups_if_needed()


def _repeat_groups_if_needed() -> str:
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


def _on_gpu(setup: Setup) -> bool:
    return setup.device == "cuda"


def _lengths(rows: int, longest: int) -> list[int]:
    """Lengths with a long tail, at least 4."""
    return [max(4, int(longest * (index / rows) ** 2)) for index in range(1, rows + 1)]


def _micro_batch(lengths: list[int], highest: int) -> Any:
    """Rows of random tokens, the first quarter of each a prompt."""
    import numpy as np

    from sppo_ray.types import MicroBatch

    draw = np.random.default_rng(sum(lengths))
    whole = np.array(lengths, dtype=np.int32)
    prompts = np.maximum(1, whole // 4).astype(np.int32)
    tokens = int((whole - prompts).sum())
    logprobs = np.full(tokens, -math.log(highest), dtype=np.float32)
    return MicroBatch(
        token_ids=draw.integers(4, highest, int(whole.sum()), dtype=np.int32),
        prompt_lengths=prompts,
        response_lengths=whole - prompts,
        old_logprobs=logprobs,
        rollout_logprobs=logprobs,
        advantages=draw.normal(size=tokens).astype(np.float32),
        weights=np.ones(len(lengths), dtype=np.float32),
    )


def _policy_gradient(
    policy: Any, lengths: list[int], device: str, backward: Callable[[Any], None] | None = None
) -> tuple[Any, Any]:
    """Forward and backward of -mean(advantage * log-prob); return log-probs and loss."""
    import torch

    from sppo_ray.models.packed import policy_inputs

    batch = _micro_batch(lengths, 400)
    logprobs, _ = policy(policy_inputs(batch, device=device), 1.0)
    loss = -(logprobs * torch.from_numpy(batch.advantages).to(device)).mean()
    if backward is None:
        loss.backward()
    else:
        backward(loss)
    return logprobs.detach(), loss.detach()


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


def _packed_attention(device: str) -> tuple[str, str]:
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
    return PACKED, _repeat_groups_if_needed()


def _policy(
    shape: dict[str, Any],
    device: str,
    dtype: str,
    *,
    family: str = "qwen2",
    checkpointing: bool = False,
    initializer_range: float = 0.02,
) -> Any:
    """A policy with random weights, made on the device."""
    import torch
    import transformers

    from sppo_ray.models.loading import DTYPES, enable_gradient_checkpointing
    from sppo_ray.models.policy import MAX_LOGITS, PolicyModel

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            _config(shape, family, initializer_range),
            dtype=DTYPES[dtype],
            attn_implementation=_packed_attention(device)[0],
        )
    if checkpointing:
        enable_gradient_checkpointing(model)
    return PolicyModel(model, MAX_LOGITS)


def _draw_biases(model: Any) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)


def _config(shape: dict[str, Any], family: str, initializer_range: float = 0.02) -> Any:
    from transformers import LlamaConfig, Qwen2Config

    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config}[family]
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return kind(**shape, **special, initializer_range=initializer_range, max_position_embeddings=MAX_TOKENS)


def _save_checkpoint(shape: dict[str, Any], folder: Path) -> None:
    """A checkpoint in bfloat16 with a tokenizer of 45 tokens."""
    import torch
    import transformers

    from sppo_ray.models.tiny import character_tokenizer

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(_config(shape, "qwen2"), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)


def _parameter_sizes(shape: dict[str, Any]) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(shape, "qwen2"))
    return [parameter.numel() for _, parameter in model.named_parameters()]


def _at_most(what: str, limit: float, figure: float) -> Check:
    return Check(what, f"<= {limit:g}", figure, figure <= limit)


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _median_seconds(call: Callable[[], Any], device: str, times: int) -> float:
    found = []
    for _ in range(times):
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reset_peak(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()


def _peak_gb(device: str) -> float | None:
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None


def _allocated(device: str) -> float:
    import torch

    return torch.cuda.memory_allocated() / 1e9 if device == "cuda" else 0.0


def _host_bytes() -> int:
    """Resident bytes of this process. Pinned memory counts."""
    import psutil

    return psutil.Process().memory_info().rss
