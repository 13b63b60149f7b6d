"""The engine's side of all transports, registered with vLLM as one backend.

    flat      one buffer: `FlatWeightTransferEngine`
    chunks    start_weight_update()
              update_weights(ChunkUpdate)   each chunk: receive, load, digest of the chunk before
              finish_weight_update()        layers that are still incomplete, digest of the last

A chunk is received into new memory on the engine's device. Layerwise reload may refer to it until a
layer is complete, and keeps it alive; a chunk is released after the next one is loaded and its own
digest is taken. A broken broadcast is not raised, because with tensor parallelism vLLM loses the
type of an exception: `outcome` returns it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.weights.channels import Channel, open_channel, place_of
from actors.weights.chunks import HEADER_BYTES, Chunk, chunks_of, combined_digest, header_fault
from actors.weights.device_digest import device_digest
from actors.weights.flat import FlatUpdate, FlatWeightTransferEngine, Layout, LoadLedger, LoadProof
from actors.weights.layout import WeightsRefused
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
        self._channel: Channel | None = None
        self._invitation: Invitation | None = None
        self._chunks: ChunkLoad | None = None

    @property
    def place(self) -> str:
        return place_of(self.device)

    def init_transfer_engine(self, init_info: GroupInit) -> None:
        """Join the group of an epoch instead of an earlier one. `aborted` tells a failure."""
        self.shutdown()
        self.proof, self.aborted = None, None
        invitation = init_info.invitation
        try:
            self._channel = open_channel(
                invitation.transport,
                invitation.seats[self.parallel_config.rank],
                self.device,
                timeout_s=invitation.timeout_s,
            )
            self._invitation = invitation
        except TransferFailed as failure:
            self.aborted = Aborted(str(failure), is_torn=False)

    def parse_update_info(self, update_dict: dict[str, Any]) -> Any:
        kind = ChunkUpdate if "epoch" in update_dict else FlatUpdate
        return kind(**update_dict)

    def start_weight_update(self) -> None:
        super().start_weight_update()
        self.aborted, self._chunks = None, None

    def receive_weights(self, update_info: Any) -> None:
        """Load a version. A layout that is not the model's raises WeightsRefused."""
        if isinstance(update_info, FlatUpdate):
            super().receive_weights(update_info)
            return
        layout = self._checked_layout(update_info)
        try:
            self._receive_chunks(update_info, layout)
        except TransferFailed as failure:
            self._give_up(str(failure))

    def finish_weight_update(self) -> None:
        """Finish the reload. Sets `proof`, or after a broken broadcast `aborted`."""
        if self._chunks is None:
            if self.aborted is None:
                super().finish_weight_update()
            return
        load, self._chunks = self._chunks, None
        with load.ledger:
            finalize_layerwise_reload(self.model, self.model_config)
        self._repack()
        if self.aborted is None:
            shards = self.parallel_config.tensor_parallel_size
            self.proof = LoadProof(load.ledger.num_loaded(shards), load.digest())

    def shutdown(self) -> None:
        super().shutdown()
        if self._channel is not None:
            self._channel.close()
        self._channel = self._invitation = None

    def _receive_chunks(self, info: ChunkUpdate, layout: dict[str, tuple[int, int]]) -> None:
        if self._channel is None or self._invitation is None:
            raise TransferFailed("this engine is in no group")
        if info.epoch != self._invitation.epoch:
            raise TransferFailed(
                f"a message of epoch {info.epoch} is refused: this engine is in epoch "
                f"{self._invitation.epoch}"
            )
        self._channel.until(self._invitation.timeout_s)
        dtype = getattr(torch, info.dtype)
        sizes = [end - start for start, end in layout.values()]
        if info.offsets != [0, *accumulate(sizes)][:-1]:
            raise WeightsRefused("the parameters of a broadcast must follow each other without gaps")
        for chunk in chunks_of(sizes, self._invitation.chunk_bytes):
            # new memory: layers that are not complete refer to earlier chunks
            buffer = torch.empty(HEADER_BYTES + chunk.num_bytes, dtype=torch.uint8, device=self.device)
            self._channel.broadcast(buffer)
            if fault := header_fault(buffer, info.epoch, info.version, chunk):
                raise TransferFailed(fault)
            if self._chunks is None:
                self._chunks = ChunkLoad(LoadLedger(dtype.itemsize))
                initialize_layerwise_reload(self.model)
            self._load(self._chunks, chunk, buffer, info, layout)

    def _load(
        self,
        load: ChunkLoad,
        chunk: Chunk,
        buffer: torch.Tensor,
        info: ChunkUpdate,
        layout: dict[str, tuple[int, int]],
    ) -> None:
        own = {
            name: tuple(HEADER_BYTES + byte - chunk.start for byte in layout[name])
            for name in info.names[chunk.first : chunk.last]
        }
        load.ledger.watch(buffer, own)
        dtype, shapes = getattr(torch, info.dtype), info.shapes[chunk.first : chunk.last]
        named = zip(own.items(), shapes, strict=True)
        with load.ledger:
            self.model.load_weights(
                (name, buffer[start:end].view(dtype).view(shape)) for (name, (start, end)), shape in named
            )
        load.note(buffer[HEADER_BYTES:])

    def _give_up(self, why: str) -> None:
        """End the update; the model may hold layers of two versions."""
        self.aborted = Aborted(why, is_torn=self._chunks is not None)
        self.shutdown()


class ChunkLoad:
    """A version that is being loaded from chunks."""

    def __init__(self, ledger: LoadLedger) -> None:
        self.ledger = ledger
        self._digests: list[str] = []
        self._last: torch.Tensor | None = None

    def note(self, data: torch.Tensor) -> None:
        """Take the digest of the chunk before `data`, which was loaded in the meantime."""
        if self._last is not None:
            self._digests.append(device_digest(self._last))
        self._last = data

    def digest(self) -> str:
        if self._last is not None:
            self._digests.append(device_digest(self._last))
        self._last = None
        return combined_digest(self._digests)


def outcome(worker: Any) -> LoadProof | Aborted | None:
    """Return what the last update or invitation of this vLLM worker led to, for `collective_rpc`.
    None = it joined a group.
    """
    receiver: WeightReceiver = worker.weight_transfer_engine
    return receiver.aborted or receiver.proof


def place(worker: Any) -> str:
    """Return the GPU or host of this vLLM worker, for `collective_rpc`."""
    return str(worker.weight_transfer_engine.place)
