"""Entry point (group `vllm.general_plugins`) that makes the weight-transfer backend "flat" known to a vLLM process.

vLLM calls `register` in each process that it starts (engine core, tensor-parallel workers); in the process that builds
the engine itself it is called directly before.
"""

from __future__ import annotations

BACKEND = "flat"


def register() -> None:
    """Add the backend to vLLM's factory; calling it again changes nothing. The engine class is imported when first used."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    # The registry is the only way to ask: register_engine raises on a name that is already there.
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "actors.vllm_weight_transfer", "FlatWeightTransferEngine")
