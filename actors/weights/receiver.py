"""The engine's side of all transports, registered with vLLM as one backend.

    flat      one buffer: `FlatWeightTransferEngine`
    chunks    init_weight_transfer_engine(invitation)   joins the group of an epoch
              start_weight_update()
              update_weights(ChunkUpdate)   receives and loads every chunk (`chunk_receiver.py`)
              finish_weight_update()        finishes incomplete layers, takes the digest

A broken broadcast is not raised, because with tensor parallelism vLLM loses the type of an
exception: `outcome` returns it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

from actors.weights.channels import place_of
from actors.weights.chunk_receiver import ChunkReceiver, Incoming
from actors.weights.flat import FlatUpdate, FlatWeightTransferEngine, Layout, LoadProof
from sppo_ray.protocols import Invitation, TransferFailed


@dataclass
class GroupInit(WeightTransferInitInfo):
    invitation: Invitation


@dataclass
class ChunkUpdate(Layout):
    """A version that arrives in the chunks of the layout."""

    version: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Aborted:
    """A broadcast that did not bring a whole version. `is_torn`: the model is partly changed."""

    why: str
    is_torn: bool


class WeightReceiver(FlatWeightTransferEngine):
    """The worker's part of the backend, for one device."""

    init_info_cls: Any = GroupInit
    update_info_cls: Any = Layout

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aborted: Aborted | None = None
        self._chunks = ChunkReceiver(self.device, self.parallel_config.rank)

    @property
    def place(self) -> str:
        return place_of(self.device)

    def init_transfer_engine(self, init_info: GroupInit) -> None:
        """Join the group of an epoch instead of an earlier one. `aborted` tells a failure."""
        self.proof, self.aborted = None, None
        try:
            self._chunks.join(init_info.invitation)
        except TransferFailed as failure:
            self.aborted = Aborted(str(failure), is_torn=False)

    def parse_update_info(self, update_dict: dict[str, Any]) -> Any:
        kind = ChunkUpdate if "epoch" in update_dict else FlatUpdate
        return kind(**update_dict)

    def start_weight_update(self) -> None:
        super().start_weight_update()
        self.aborted, self._chunks.load = None, None

    def receive_weights(self, update_info: Any) -> None:
        """Load a version. A layout that is not the model's raises WeightsRefused."""
        if isinstance(update_info, FlatUpdate):
            super().receive_weights(update_info)
            return
        info: ChunkUpdate = update_info
        spans = self._checked_layout(info)
        shapes = {name: tuple(shape) for name, shape in zip(info.names, info.shapes, strict=True)}
        incoming = Incoming(info.version, info.epoch, shapes, spans, getattr(torch, info.dtype))
        try:
            self._chunks.receive(incoming, lambda: self._begin(shapes, incoming.dtype), self._load)
        except TransferFailed as failure:
            self.aborted = Aborted(str(failure), is_torn=self._chunks.load is not None)

    def finish_weight_update(self) -> None:
        """Finish the reload, also of a part of a version. Sets `proof`, unless it was `aborted`."""
        load = self._chunks.load
        if load is None:
            if self.aborted is None:
                super().finish_weight_update()
            return
        self._chunks.load = None
        with load.ledger:
            finalize_layerwise_reload(self.model, self.model_config)
        self._repack()
        if self.aborted is None:
            self.proof = LoadProof(self._num_loaded(load.ledger), load.digest())

    def shutdown(self) -> None:
        super().shutdown()
        self._chunks.leave()


def outcome(worker: Any) -> LoadProof | Aborted | None:
    """Return what the last update or invitation of this vLLM worker led to, for `collective_rpc`.
    None = it joined a group.
    """
    receiver: WeightReceiver = worker.weight_transfer_engine
    return receiver.aborted or receiver.proof


def place(worker: Any) -> str:
    """Return the GPU or host of this vLLM worker, for `collective_rpc`."""
    return str(worker.weight_transfer_engine.place)
