"""Weight-transfer backend "flat" for vLLM's native API: one flat buffer a version, on any device.

    start_weight_update()
    update_weights(FlatUpdate)    checks the update against the model's parameters, then reloads
                                  every layer
    finish_weight_update()        finishes incomplete layers, repacks a tied lm_head on a CPU, then
                                  computes digest and number of loaded parameters

The buffer is a NumPy view of Ray's object store when the engine runs in this process, else a file
in shared memory. It is kept until finish_weight_update, because layerwise reload refers to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.weights.layout import WeightsRefused, require_complete, spans
from actors.weights.ledger import LoadLedger
from actors.weights.read_back import ReadBack, is_readable
from sppo_ray.rollout.weight_digest import flat_digest


@dataclass
class FlatInit(WeightTransferInitInfo):
    """Empty: the backend needs no initialisation."""


@dataclass
class Layout(WeightTransferUpdateInfo):
    """The layout of a version, as in `WeightManifest`."""

    names: list[str]
    shapes: list[list[int]]
    offsets: list[int]  # bytes
    dtype: str
    num_bytes: int


@dataclass
class FlatUpdate(Layout):
    """One version: its layout, and either the buffer or the path of a file."""

    buffer: np.ndarray | None = None  # uint8, [num_bytes]
    path: str | None = None

    def open(self) -> np.ndarray:
        """Return the bytes of the version, [num_bytes] uint8, without a copy. Raises WeightsRefused
        for another number of bytes.
        """
        if (self.buffer is None) == (self.path is None):
            raise WeightsRefused("an update carries either a buffer or a path")
        data = (
            np.memmap(self.path, dtype=np.uint8, mode="r")
            if self.buffer is None
            else self.buffer.reshape(-1).view(np.uint8)
        )
        if data.nbytes != self.num_bytes:
            raise WeightsRefused(f"the buffer has {data.nbytes} bytes, the manifest says {self.num_bytes}")
        return data


@dataclass(frozen=True, slots=True)
class LoadProof:
    """What a worker loaded in its last update."""

    # parameters of the manifest whose values were copied into the model, and that are found in the
    # model's own memory afterwards, where that can be read (`read_back.py`)
    num_loaded: int
    digest: str  # of the buffer, taken after the model was loaded from it


class FlatWeightTransferEngine(WeightTransferEngine[FlatInit, FlatUpdate]):
    """The worker's part of the backend. An invalid update raises WeightsRefused and does not change
    the model.
    """

    init_info_cls = FlatInit
    update_info_cls = FlatUpdate
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.proof: LoadProof | None = None
        self._expected: dict[str, tuple[int, ...]] | None = None
        # keeps the buffer alive until finish
        self._loading: tuple[np.ndarray, LoadLedger] | None = None
        self._read_back: ReadBack | None = None

    def init_transfer_engine(self, init_info: FlatInit) -> None:
        """Do nothing: the backend needs no process group."""

    def start_weight_update(self) -> None:
        """Start an update. The model is unchanged until the update has been checked."""
        self._loading, self.proof = None, None

    def receive_weights(self, update_info: FlatUpdate) -> None:
        """Check a version against the model, then load it.

        Raises WeightsRefused before the model is changed.
        """
        if self._loading is not None:
            raise WeightsRefused("a version comes in one update: finish this one first")
        info = update_info
        layout = self._checked_layout(info)
        data = info.open()
        flat, dtype = _as_tensor(data), getattr(torch, info.dtype)
        named = zip(info.names, info.shapes, strict=True)
        views = [(name, flat[slice(*layout[name])].view(dtype).view(shape)) for name, shape in named]
        ledger = LoadLedger(dtype.itemsize)
        ledger.watch(flat, layout)
        self._loading = (data, ledger)
        self._begin({name: view.shape for name, view in views}, dtype)
        with ledger:
            self._load(views)

    def finish_weight_update(self) -> None:
        """Finish the reload and compute the proof. Raises RuntimeError without a received
        update.
        """
        if self._loading is None:
            raise RuntimeError("finish_weight_update without an update")
        data, ledger = self._loading
        with ledger:
            finalize_layerwise_reload(self.model, self.model_config)
        self._repack()
        self.proof = LoadProof(self._num_loaded(ledger), flat_digest(data))
        self._loading = None

    def shutdown(self) -> None:
        self._loading = None

    def _begin(self, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> None:
        """Prepare the model for a version."""
        self._read_back = ReadBack(self.model, shapes, dtype) if is_readable(self.model) else None
        initialize_layerwise_reload(self.model)

    def _load(self, parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
        watched = parameters if self._read_back is None else self._read_back.watch(parameters)
        self.model.load_weights(iter(watched))

    def _num_loaded(self, ledger: LoadLedger) -> int:
        """Return `LoadProof.num_loaded` after the reload."""
        loaded = ledger.num_loaded(self.parallel_config.tensor_parallel_size)
        read_back, self._read_back = self._read_back, None
        return loaded if read_back is None else min(loaded, read_back.num_found())

    def _repack(self) -> None:
        if self.device.type == "cpu":
            _pack_tied_heads(self.model)

    def _checked_layout(self, layout: Layout) -> dict[str, tuple[int, int]]:
        """Return [start, end) in bytes of each parameter. Raises WeightsRefused when the layout is
        not that of the model.
        """
        if self._expected is None:
            self._expected = policy_parameters(self.model_config.hf_config)
        found = spans(layout.names, layout.shapes, layout.offsets, layout.dtype, layout.num_bytes)
        require_complete(layout.names, layout.shapes, self._expected)
        return found


def load_proof(worker: Any) -> LoadProof:
    """Return what this vLLM worker loaded in its last update, for `collective_rpc`."""
    proof: LoadProof | None = worker.weight_transfer_engine.proof
    if proof is None:
        raise RuntimeError("no weight update has been finished")
    return proof


def policy_parameters(hf_config: Any) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each parameter of a config's Transformers model, tied ones once.

    They equal those of the learner's `named_parameters()`. The engine itself uses other names for
    fused parameters (qkv_proj, gate_up_proj).
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _as_tensor(data: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # Memory of Ray's object store is read-only, and it is never written here.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(memoryview(data), dtype=torch.uint8)


def _pack_tied_heads(model: torch.nn.Module) -> None:
    """Repack each lm_head that shares the embedding's weight.

    On a CPU a linear layer multiplies with a packed copy of its weight. Layerwise reload repacks
    the layers that it loaded. A tied lm_head is not loaded, so it would keep the old version.
    """
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
