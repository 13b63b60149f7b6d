"""Sleep of an engine that shares its GPU with a learner and a critic (colocated layout).

    awake --sleep--> weights and KV cache are gone --wake("weights")--> load a version
        --wake("kv_cache")--> probe, generate

Level 2 keeps neither weights nor KV cache. Nothing is lost, because every pull loads all
parameters of a version and proves it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.v1.engine.llm_engine import LLMEngine

from actors.weights.flat import _pack_tied_heads, policy_parameters

Tag = Literal["weights", "kv_cache"]


class VllmSleep:
    """vLLM's sleep mode. It needs `enable_sleep_mode`, which exists on GPUs only."""

    def sleep(self, engine: LLMEngine) -> None:
        """Free weights and KV cache. The engine must have no requests."""
        engine.sleep(level=2, mode="keep")

    def wake(self, engine: LLMEngine, tag: Tag) -> None:
        """Allocate weights or KV cache; their content is undefined."""
        engine.wake_up(tags=[tag])


class CpuSleep(VllmSleep):
    """A FAKE of sleep mode, for engines on a CPU, whose workers ignore `sleep`.

    vLLM's own scheduler pauses and its executor counts what is asleep, as on a GPU. No memory is
    freed. Instead the weights become NaN, in the packed copies of linear layers too, and so does
    the KV cache. An engine that used either afterwards would fail the probe of a weight sync.
    """

    def sleep(self, engine: LLMEngine) -> None:
        super().sleep(engine)
        engine.collective_rpc(_lose_memory)

    def wake(self, engine: LLMEngine, tag: Tag) -> None:
        super().wake(engine, tag)
        if tag == "kv_cache":
            engine.collective_rpc(_clear_kv_cache)


def engine_sleep(device: str) -> VllmSleep:
    return CpuSleep() if device == "cpu" else VllmSleep()


def _lose_memory(worker: Any) -> None:
    """Load NaN into every parameter, the way a version is loaded, and write NaN to the KV cache."""
    runner = worker.model_runner
    model, config = runner.model, worker.model_config
    nan = torch.full((), float("nan"), dtype=config.dtype)
    shapes = policy_parameters(config.hf_config)
    initialize_layerwise_reload(model)
    model.load_weights((name, nan.expand(shape)) for name, shape in shapes.items())
    finalize_layerwise_reload(model, config)
    _pack_tied_heads(model)
    for cache in runner.kv_caches:
        cache.fill_(float("nan"))


def _clear_kv_cache(worker: Any) -> None:
    for cache in worker.model_runner.kv_caches:
        cache.zero_()
