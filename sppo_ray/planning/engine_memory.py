"""Bytes of memory of an engine: pure functions of shapes and settings. Source: vLLM 0.32."""

from __future__ import annotations

from dataclasses import dataclass

from sppo_ray.planning.memory import CUDA_CONTEXT, GIB, LOGIT_BYTES, PROCESS, RankMemory
from sppo_ray.planning.shapes import ModelShape

MIN_BATCHED_TOKENS = 8192
"""As `actors/vllm_engine.py`."""
CUDA_GRAPHS = 1 * GIB
"""vLLM's graphs, which it captures beside gpu_memory_utilization; not measured."""


def kv_bytes_a_token(shape: ModelShape, item_bytes: int, tensor_parallel: int = 1) -> int:
    """Return the KV cache's bytes of a token on one GPU: key and value of every layer and KV head.
    vLLM copies KV heads where there are fewer than GPUs.
    """
    heads = max(1, -(-shape.kv_heads // tensor_parallel))
    return 2 * shape.layers * heads * shape.head_dim * item_bytes


@dataclass(frozen=True, slots=True)
class Engine:
    """What decides the memory of one engine."""

    shape: ModelShape
    item_bytes: int
    tensor_parallel: int
    max_sequences: int
    context_tokens: int
    budget: int  # bytes of a GPU that the engine may use; 0 on a CPU
    kv_cache: int  # bytes of the KV cache; 0 = what the budget leaves
    graphs: bool
    on_cuda: bool
    transfer: int = 0  # buffers of a weight sync


@dataclass(frozen=True, slots=True)
class EngineMemory:
    memory: RankMemory
    cached_tokens: int  # that the KV cache holds; below 0 when not even the weights fit


def engine_memory(engine: Engine) -> EngineMemory:
    """Return the memory of one engine on each of its GPUs.

    vLLM takes gpu_memory_utilization of the GPU: weights, the peak of a profiling run with
    max_num_batched_tokens, and the KV cache in what is left, unless its size is given. Graphs come
    on top. While weights are loaded, nothing is generated.
    """
    share = engine.tensor_parallel
    weights = engine.shape.parameters * engine.item_bytes // share
    tokens = max(MIN_BATCHED_TOKENS, engine.context_tokens) if engine.on_cuda else engine.context_tokens
    width = 2 * engine.shape.intermediate // share + 4 * engine.shape.hidden
    logits = engine.max_sequences * engine.shape.vocabulary * LOGIT_BYTES
    work = tokens * width * engine.item_bytes
    a_token = kv_bytes_a_token(engine.shape, engine.item_bytes, share)
    if not engine.on_cuda:
        components = {
            "weights": weights,
            "KV cache": engine.kv_cache,
            "activations": work,
            "logits": logits,
            "process": PROCESS["rollout"],
        }
        return EngineMemory(RankMemory({"generation": components}, {}), engine.kv_cache // a_token)
    cache = engine.kv_cache or engine.budget - weights - work - logits - CUDA_CONTEXT
    components = {
        "weights": weights,
        "KV cache": max(0, cache),
        "activations": work,
        "logits": logits,
        "context": CUDA_CONTEXT + (CUDA_GRAPHS if engine.graphs else 0),
    }
    kept = {name: components[name] for name in ("weights", "KV cache", "context")}
    phases = {"generation": components, "sync": {**kept, "transfer buffers": engine.transfer}}
    host = {"process": PROCESS["rollout"] * share}
    return EngineMemory(RankMemory(phases, host), cache // a_token)
