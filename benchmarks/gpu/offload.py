"""Section `offload`: a rank's bytes, and its states on the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.common import (
    Found,
    allocated_gb,
    median_seconds,
    on_gpu,
    release_memory,
    require,
    wait_for,
)
from benchmarks.gpu.models import SHAPES, policy_gradient, random_policy, row_lengths
from benchmarks.gpu_smoke import Check, Setup


def offload(setup: Setup) -> Found:
    """ZeRO-2 in bfloat16: bytes a parameter on device and host, and states moved to the host."""
    import psutil
    import torch

    from actors.deepspeed import TrainingEngine, join_group, open_store
    from sppo_ray.config import LearnerSettings

    require(setup)
    shape = SHAPES["tiny"] | {"vocab_size": 4096} if setup.tiny else SHAPES["1.5B"] | {"num_hidden_layers": 8}
    lengths = row_lengths(4, 24 if setup.tiny else 512)
    join_group(0, 1, device=setup.device, store=open_store("127.0.0.1"))
    # first with offload: states that were moved to the host leave pinned memory for later engines
    for on_host in (True, False):
        if on_host and not on_gpu(setup):
            yield {"offload_optimizer": True, "skipped": "needs a CUDA device"}
            continue
        yield f"ZeRO-2, offload_optimizer {on_host}"
        settings = LearnerSettings(
            model="none",
            dtype="bfloat16",
            zero_stage=2,
            offload_optimizer=on_host,
            gpus_per_rank=float(on_gpu(setup)),
        )
        policy = random_policy(shape, setup.device, "bfloat16")
        policy_gradient(policy, lengths, setup.device)  # what the kernels allocate once
        policy.zero_grad()
        release_memory()
        host, free, device = _host_bytes(), psutil.virtual_memory().available, allocated_gb(setup.device)
        engine = TrainingEngine(policy, settings, device=setup.device, world_size=1)

        def step(engine: TrainingEngine = engine) -> None:
            policy_gradient(engine, lengths, setup.device, backward=engine.backward)
            engine.step(1e-6)

        step()
        count = engine.num_parameters
        row = {
            "offload_optimizer": on_host,
            "parameters": count,
            "layers": shape["num_hidden_layers"],
            "seconds_step": median_seconds(step, setup.device, 2),
        }
        if not setup.tiny:  # a tiny model is lost in what the process itself needs
            row |= {
                "host_bytes_a_parameter": (_host_bytes() - host) / count,
                "host_bytes_a_parameter_of_system": (free - psutil.virtual_memory().available) / count,
                # 2: the weights, allocated before
                "device_bytes_a_parameter": 2 + (allocated_gb(setup.device) - device) * 1e9 / count,
            }
        yield row
        if on_host and not setup.tiny:
            figure = row["host_bytes_a_parameter"]
            yield Check(
                "host bytes a parameter of ZeRO-2 with offload", "18 +- 1", figure, abs(figure - 18) <= 1
            )
        elif not on_host:
            yield from _moved_states(engine, setup.device, step)
        engine.close()
        del engine, policy, step
        release_memory()
    torch.distributed.destroy_process_group()


def _moved_states(engine: Any, device: str, step: Callable[[], None]) -> Found:
    """Move optimizer, master weights and then the weights to the host and back."""
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as States

    kinds = {"optimizer and master weights": [States.optim_states, States.hp_params], "all states": None}
    for what, states in kinds.items():
        yield f"offload_states, {what}"
        arguments = {} if states is None else {"include": states}
        before = allocated_gb(device)
        started = time.perf_counter()
        engine._engine.offload_states(**arguments)
        wait_for(device)
        out = time.perf_counter() - started
        release_memory()
        moved = before - allocated_gb(device)
        started = time.perf_counter()
        engine._engine.reload_states()
        wait_for(device)
        back = time.perf_counter() - started
        yield {"what": f"offload_states: {what}", "gb": moved, "seconds_out": out, "seconds_back": back}
    step()


def _host_bytes() -> int:
    """Resident bytes of this process. Pinned memory counts."""
    import psutil

    return psutil.Process().memory_info().rss
