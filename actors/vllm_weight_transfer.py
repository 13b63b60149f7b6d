"""Weight-transfer backend "flat" for vLLM's native API: one flat buffer a version, on any device.

    start_weight_update() -> update_weights(FlatUpdate) -> finish_weight_update()
                                |                             |
              checked against the model's parameters     layers that are still open are finished, a tied lm_head is
              first; then every layer is reloaded        packed anew on CPU, then digest and count are taken

The buffer is a numpy view (engine in this process: Ray's object store, no copy) or a file in shared memory (engine in
other processes). It is held until finish_weight_update, because layerwise reload keeps references into it.
"""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.flat_layout import WeightsRefused, require_complete, spans
from sppo_ray.trainer.weight_digest import flat_digest


@dataclass
class FlatInit(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class FlatUpdate(WeightTransferUpdateInfo):
    """One version: the layout as in `WeightManifest`, and either the buffer itself or the path of a file with it."""

    names: list[str]
    shapes: list[list[int]]
    offsets: list[int]  # bytes
    dtype: str
    num_bytes: int
    buffer: np.ndarray | None = None  # uint8, [num_bytes]
    path: str | None = None

    def open(self) -> np.ndarray:
        """The version's bytes, uint8 [num_bytes], not copied. Raises WeightsRefused when there are not `num_bytes`."""
        if (self.buffer is None) == (self.path is None):
            raise WeightsRefused("an update carries either a buffer or a path")
        data = np.memmap(self.path, dtype=np.uint8, mode="r") if self.buffer is None else self.buffer.reshape(-1).view(np.uint8)
        if data.nbytes != self.num_bytes:
            raise WeightsRefused(f"the buffer has {data.nbytes} bytes, the manifest says {self.num_bytes}")
        return data


@dataclass(frozen=True, slots=True)
class LoadProof:
    """What a worker really loaded in its last update."""

    num_loaded: int  # parameters of the manifest whose values were copied into the model
    digest: str  # of the buffer, taken after the model was loaded from it


class LoadLedger(TorchDispatchMode):
    """Watches copies out of the flat buffer and counts, for each parameter, the elements that reached real memory.

    Names returned by `load_weights` prove nothing: a loader may skip a tensor and still report its fused parameter,
    and layerwise reload first "copies" into tensors without storage. This looks at the copies themselves.
    """

    def __init__(self, flat: torch.Tensor, layout: Mapping[str, tuple[int, int]], item_bytes: int) -> None:
        super().__init__()
        self._storage = flat.untyped_storage().data_ptr()
        self._ends = sorted(end for _, end in layout.values())
        self._sizes = {end: (end - start) // item_bytes for start, end in layout.values()}
        self._copied = dict.fromkeys(self._ends, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default and not args[0].is_meta:
            self._note(args[1])
        elif func in (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default) and not result.is_meta:
            self._note(args[0])
        return result

    def _note(self, source: torch.Tensor) -> None:
        if source.device.type != "cpu" or source.untyped_storage().data_ptr() != self._storage:
            return
        first_byte = source.storage_offset() * source.element_size()
        self._copied[self._ends[bisect.bisect_right(self._ends, first_byte)]] += source.numel()

    def num_loaded(self, shards: int) -> int:
        """Parameters that arrived: whole when the model has one shard, at least in part when it has several."""
        return sum(copied >= (self._sizes[end] if shards == 1 else 1) for end, copied in self._copied.items())


class FlatWeightTransferEngine(WeightTransferEngine[FlatInit, FlatUpdate]):
    """The worker's end of the backend. An update that does not fit raises WeightsRefused and leaves the model alone."""

    init_info_cls = FlatInit
    update_info_cls = FlatUpdate
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.proof: LoadProof | None = None
        self._expected: dict[str, tuple[int, ...]] | None = None
        self._loading: tuple[np.ndarray, LoadLedger] | None = None  # keeps the buffer alive until finish

    def init_transfer_engine(self, init_info: FlatInit) -> None:
        """Nothing to set up: the backend needs no process group."""

    def start_weight_update(self) -> None:
        """Opens the session only. The model stays as it is until the update has been checked."""
        self._loading, self.proof = None, None

    def receive_weights(self, update_info: FlatUpdate) -> None:
        """Check one whole version against the model, then load it. Raises WeightsRefused while the model is untouched."""
        if self._loading is not None:
            raise WeightsRefused("a version comes in one update: finish this one first")
        if self._expected is None:
            self._expected = policy_parameters(self.model_config.hf_config)
        info = update_info
        layout = spans(info.names, info.shapes, info.offsets, info.dtype, info.num_bytes)
        require_complete(info.names, info.shapes, self._expected)
        data = info.open()
        flat, dtype = _as_tensor(data), getattr(torch, info.dtype)
        named = zip(info.names, info.shapes, strict=True)
        views = [(name, flat[slice(*layout[name])].view(dtype).view(shape)) for name, shape in named]
        ledger = LoadLedger(flat, layout, dtype.itemsize)
        self._loading = (data, ledger)
        initialize_layerwise_reload(self.model)
        with ledger:
            self.model.load_weights(iter(views))

    def finish_weight_update(self) -> None:
        """Complete the reload and take the proof. Raises RuntimeError when nothing was received."""
        if self._loading is None:
            raise RuntimeError("finish_weight_update without an update")
        data, ledger = self._loading
        with ledger:
            finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            _pack_tied_heads(self.model)
        self.proof = LoadProof(ledger.num_loaded(self.parallel_config.tensor_parallel_size), flat_digest(data))
        self._loading = None

    def shutdown(self) -> None:
        self._loading = None


def load_proof(worker: Any) -> LoadProof:
    """For `collective_rpc`: what this vLLM worker loaded in the update that was finished last."""
    proof: LoadProof | None = worker.weight_transfer_engine.proof
    if proof is None:
        raise RuntimeError("no weight update has been finished")
    return proof


def policy_parameters(hf_config: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of each parameter of the Transformers model of this config, tied ones once, without its weights.

    This is what a learner's `named_parameters()` gives; the engine's own names are fused ones (qkv_proj, gate_up_proj).
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _as_tensor(data: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # Ray's object store hands out read-only memory; nothing here writes to it.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(memoryview(data), dtype=torch.uint8)


def _pack_tied_heads(model: torch.nn.Module) -> None:
    """Pack each lm_head that shares the embedding's weight again.

    On CPU a linear layer multiplies with a packed COPY of its weight. Layerwise reload packs the layers that it
    loaded, and a tied lm_head loads nothing of its own: without this it would go on with the old version for ever.
    """
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
