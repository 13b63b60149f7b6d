"""Loads weights into vLLM's own Llama and Qwen2 and reads them back; prints one JSON object.

Run as a process of its own, because vLLM's groups and its environment are those of a process. The
models' linear layers compute with their parameters, as on a GPU, and not with packed copies.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

import torch

from actors.rollout import rollout_env
from sppo_ray.config import RolloutSettings
from tests.ray.engine_models import tied_qwen, untied_llama

SETTINGS = RolloutSettings(kv_cache_gib=0.05)


def main() -> None:
    os.environ.update(rollout_env(SETTINGS, "cpu"))
    from vllm.distributed import init_distributed_environment
    from vllm.model_executor.layers import utils

    from actors.vllm_plugin import register

    register()
    utils.check_cpu_sgl_kernel = lambda *_: False
    utils.ops._supports_onednn = False
    torch.accelerator.empty_cache = lambda: None  # as vLLM's CPU worker does
    with tempfile.TemporaryDirectory() as folder:
        init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
        found = {make.__name__: counts(make()) for make in (untied_llama, tied_qwen)}
    print(json.dumps(found))


def counts(policy: Any) -> dict[str, int]:
    """Numbers of parameters: all, found after a load, after another one of which a part of the
    model's memory is that of before, and with one bit changed.
    """
    from vllm.config import set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized
    from vllm.model_executor.model_loader import get_model
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    from actors.vllm_engine import engine_args
    from actors.weights.read_back import ReadBack, is_readable

    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
        arguments = engine_args(SETTINGS, model_path=folder, max_model_len=128, seed=0, device="cpu")
        config = arguments.create_engine_config()
        with set_current_vllm_config(config):
            ensure_model_parallel_initialized(1, 1)
            model = get_model(vllm_config=config)
    assert is_readable(model)
    memory = model.model.layers[1].self_attn.qkv_proj.weight.data

    def load(shift: float) -> ReadBack:
        weights = {name: weight.detach() + shift for name, weight in policy.named_parameters()}
        read_back = ReadBack(model, {name: one.shape for name, one in weights.items()}, torch.float32)
        initialize_layerwise_reload(model)
        model.load_weights(read_back.watch(weights.items()))
        finalize_layerwise_reload(model, config.model_config)
        return read_back

    first = load(0.25)
    result = {"all": len(list(policy.named_parameters())), "found": first.num_found()}
    old = memory.clone()
    second = load(0.5)
    new = memory.clone()
    memory[:64] = old[:64]  # q_proj
    result["one stayed behind"] = second.num_found()
    memory.copy_(new)
    memory[70, 3] = torch.nextafter(memory[70, 3], torch.tensor(9.0))  # k_proj
    return result | {"one bit": second.num_found()}


if __name__ == "__main__":
    main()
