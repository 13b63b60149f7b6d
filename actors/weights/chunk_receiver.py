"""Receives a version in chunks and loads it, on one device of an engine. Knows no vLLM.

    join(invitation)   the group of an epoch
    receive(version)   each chunk: receive --> load, under the ledger --> digest of the chunk before

A chunk is received into new memory on the engine's device. A model may refer to it until a layer is
complete, and so keeps it alive. The receiver releases a chunk after the next one is loaded and its
own digest is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from actors.weights.channels import Channel, open_channel
from actors.weights.chunks import HEADER_BYTES, Chunk, chunks_of, combined_digest, header_fault
from actors.weights.device_digest import device_digest
from actors.weights.layout import WeightsRefused
from actors.weights.ledger import LoadLedger
from sppo_ray.protocols import Invitation, TransferFailed

LoadWeights = Callable[[Iterable[tuple[str, Tensor]]], object]


@dataclass(frozen=True, slots=True)
class Incoming:
    """A version that is broadcast, with shape and bytes [start, end) of each parameter."""

    version: int
    epoch: int
    shapes: dict[str, tuple[int, ...]]
    spans: dict[str, tuple[int, int]]
    dtype: torch.dtype


class ChunkLoad:
    """A version that is being loaded."""

    def __init__(self, ledger: LoadLedger) -> None:
        self.ledger = ledger
        self._digests: list[str] = []
        self._last: Tensor | None = None

    def note(self, data: Tensor) -> None:
        """Take the digest of the chunk before `data`; layers that it completed are loaded."""
        if self._last is not None:
            self._digests.append(device_digest(self._last))
        self._last = data

    def digest(self) -> str:
        """Return the digest of the version, and release its last chunk."""
        if self._last is not None:
            self._digests.append(device_digest(self._last))
        self._last = None
        return combined_digest(self._digests)


class ChunkReceiver:
    """`index` is the number of the device in its engine."""

    def __init__(self, device: torch.device, index: int) -> None:
        self._device = device
        self._index = index
        self._channel: Channel | None = None
        self._invitation: Invitation | None = None
        self.load: ChunkLoad | None = None  # None = the model is unchanged

    def join(self, invitation: Invitation) -> None:
        """Join a group instead of an earlier one. Raises TransferFailed."""
        self.leave()
        self._channel = open_channel(
            invitation.transport,
            invitation.seats[self._index],
            self._device,
            timeout_s=invitation.timeout_s,
        )
        self._invitation = invitation

    def leave(self) -> None:
        """Leave the group, if any. Its other members get an error when they wait for this one."""
        if self._channel is not None:
            self._channel.close()
        self._channel = self._invitation = None

    def receive(self, incoming: Incoming, begin: Callable[[], None], load_weights: LoadWeights) -> None:
        """Load a version. `begin` prepares the model after the first chunk has arrived.

        Raises TransferFailed, after which `load` tells whether the model has changed, and
        WeightsRefused when the layout has gaps.
        """
        self.load = None
        sizes = [end - start for start, end in incoming.spans.values()]
        if [start for start, _ in incoming.spans.values()] != [0, *accumulate(sizes)][:-1]:
            raise WeightsRefused("the parameters of a broadcast must follow each other without gaps")
        channel, invitation = self._group_of(incoming.epoch)
        try:
            channel.until(invitation.timeout_s)
            for chunk in chunks_of(sizes, invitation.chunk_bytes):
                # new memory: layers that are not complete refer to earlier chunks
                buffer = torch.empty(
                    HEADER_BYTES + chunk.num_bytes, dtype=torch.uint8, device=self._device
                )
                channel.broadcast(buffer)
                if fault := header_fault(buffer, incoming.epoch, incoming.version, chunk):
                    raise TransferFailed(fault)
                if self.load is None:
                    self.load = ChunkLoad(LoadLedger(incoming.dtype.itemsize))
                    begin()
                self._load_chunk(self.load, chunk, buffer, incoming, load_weights)
        except TransferFailed:
            self.leave()
            raise

    def _group_of(self, epoch: int) -> tuple[Channel, Invitation]:
        if self._channel is None or self._invitation is None:
            raise TransferFailed("this engine is in no group")
        if epoch != self._invitation.epoch:
            raise TransferFailed(
                f"a message of epoch {epoch} is refused: this engine is in epoch {self._invitation.epoch}"
            )
        return self._channel, self._invitation

    def _load_chunk(
        self, load: ChunkLoad, chunk: Chunk, buffer: Tensor, incoming: Incoming, load_weights: LoadWeights
    ) -> None:
        names = list(incoming.spans)[chunk.first : chunk.last]
        shift = HEADER_BYTES - chunk.start
        own = {name: (shift + incoming.spans[name][0], shift + incoming.spans[name][1]) for name in names}
        load.ledger.watch(buffer, own)
        with load.ledger:
            load_weights(
                (name, buffer[start:end].view(incoming.dtype).view(incoming.shapes[name]))
                for name, (start, end) in own.items()
            )
        load.note(buffer[HEADER_BYTES:])
