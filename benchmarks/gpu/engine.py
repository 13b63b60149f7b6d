"""Section `engine`: vLLM."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import Found, on_gpu, require, wait_for
from benchmarks.gpu.models import SHAPES, save_checkpoint
from benchmarks.gpu_smoke import Setup


def engine(setup: Setup) -> Found:
    """vLLM with the arguments of a rollout worker: tokens/s, sleep and wake."""
    import os

    import torch

    from actors.rollout import rollout_env
    from sppo_ray.config import RolloutSettings

    require(setup)
    shape, requests, tokens = ("tiny", 8, 32) if setup.tiny else ("1.5B", 256, 512)
    options: dict[str, Any] = (
        {"kv_cache_gib": 0.25}
        if not on_gpu(setup)
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
    save_checkpoint(SHAPES[shape] | ({"head_dim": 32} if setup.tiny else {}), folder)
    yield "start of the engine"
    started = time.perf_counter()
    described = engine_args(
        settings, model_path=str(folder), max_model_len=tokens + 64, seed=0, device=setup.device
    )
    described.enable_sleep_mode = on_gpu(setup)
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
    if not on_gpu(setup):
        yield {"what": "sleep and wake", "skipped": "needs a CUDA device"}
        return
    for level in (1, 2):
        yield f"sleep, level {level}"
        wait_for(setup.device)
        free = torch.cuda.mem_get_info()[0]
        started = time.perf_counter()
        llm.sleep(level, mode="keep")
        slept, freed = time.perf_counter() - started, torch.cuda.mem_get_info()[0] - free
        started = time.perf_counter()
        llm.wake_up()
        wait_for(setup.device)
        yield {
            "what": f"sleep, level {level}",
            "gb": freed / 1e9,
            "seconds_sleep": slept,
            "seconds_wake": time.perf_counter() - started,
        }
        if level == 1:  # level 2 drops the weights
            same = generate(requests, "again") == before
            yield {"what": "the same tokens after level 1", "value": same}
