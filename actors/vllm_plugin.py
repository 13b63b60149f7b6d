"""vLLM plugin (entry point group `vllm.general_plugins`): registers the weight-transfer backend
"sppo_ray", which has all transports, and the CPU sampler of `seeded_sampler`; permits AMX.

vLLM calls `register` in each process that it starts (engine core, tensor-parallel workers). The
process that creates the engine calls it directly.
"""

from __future__ import annotations

BACKEND = "sppo_ray"


def register() -> None:
    """Register backend and sampler. A second call has no effect. The backend's class is imported on
    first use.
    """
    import torch
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    from actors import seeded_sampler

    # Check the registry, because register_engine raises for a name that is registered.
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "actors.weights.receiver", "WeightReceiver")
    seeded_sampler.install()
    # Linux ends a process that uses AMX tiles without having asked for them, and vLLM's kernels for
    # bfloat16 use them where the CPU has them.
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
