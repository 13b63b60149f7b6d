"""The learner's side of a broadcast: a rank that packs its parameters into chunks and sends them.

    announce   every parameter --> chunks --> digest of the version
    join       the group of an epoch
    send       every parameter --> chunks --> channel.broadcast

All ranks iterate over the parameters, because gathering one is a collective under ZeRO-3. Only a
rank that is rank 0 of a group packs and sends. No more than one chunk is held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributed import TCPStore

from actors.weights.channels import Channel, open_channel, open_store, place_of
from actors.weights.chunks import (
    HEADER_BYTES,
    Chunk,
    buffer_bytes,
    chunks_of,
    combined_digest,
    packed,
    write_header,
)
from actors.weights.device_digest import device_digest
from sppo_ray.models.loading import DTYPES
from sppo_ray.protocols import Seat, TransferFailed, WeightManifest

Parameters = Callable[[], Iterator[tuple[str, Tensor]]]


class ChunkSender:
    """One rank's sender. `parameters` starts an iteration over names and whole tensors; each
    tensor is valid until the next one.
    """

    def __init__(self, parameters: Parameters, *, dtype: str, device: str, is_first: bool) -> None:
        self._parameters = parameters
        self._dtype_name = dtype
        self._dtype = DTYPES[dtype]
        self._device = device
        self._is_first = is_first
        self._layout: tuple[tuple[str, ...], tuple[tuple[int, ...], ...]] | None = None
        self._chunks: list[Chunk] = []
        self._store: TCPStore | None = None
        self._channel: Channel | None = None
        self._epoch = 0

    @property
    def place(self) -> str:
        return place_of(self._own_device)

    def announce(self, version: int, chunk_bytes: int) -> WeightManifest | None:
        """Return the manifest of the present weights on the first rank. A collective."""
        names, shapes, sizes = self._cut(chunk_bytes)
        if not self._is_first:
            self._pass_by()
            return None
        buffer = torch.empty(buffer_bytes(self._chunks), dtype=torch.uint8, device=self._device)
        digests = [
            device_digest(buffer[HEADER_BYTES : HEADER_BYTES + chunk.num_bytes])
            for chunk in packed(self._parameters(), self._chunks, buffer, self._dtype)
        ]
        offsets = tuple(sum(sizes[:index]) for index in range(len(sizes)))
        return WeightManifest(
            version, names, shapes, offsets, self._dtype_name, sum(sizes), combined_digest(digests)
        )

    def open_store(self, host: str, timeout_s: float) -> tuple[str, int]:
        """Leave the group, and open the store of the next one. Returns host and port."""
        self.leave()
        self._store = open_store(host, timeout_s)
        return host, self._store.port

    def join(self, epoch: int, transport: str, size: int, timeout_s: float) -> str:
        """Form the group of an epoch as its rank 0. Returns why that failed, or an empty text."""
        store, self._epoch = self._store, epoch
        assert store is not None, "open_store comes first"
        try:
            self._channel = open_channel(
                transport,
                Seat(store.host, store.port, 0, size),
                self._own_device,
                timeout_s=timeout_s,
                store=store,
            )
        except TransferFailed as failure:
            self.leave()
            return str(failure)
        return ""

    def send(self, version: int, epoch: int, timeout_s: float) -> str:
        """Broadcast the parameters to this rank's group, if it has one. A collective. Returns why
        that failed, or an empty text.
        """
        if self._channel is None or epoch != self._epoch:
            self._pass_by()
            return f"learner is in epoch {self._epoch}, not {epoch}" if self._is_first else ""
        channel, failure = self._channel, ""
        channel.until(timeout_s)
        try:
            buffer = channel.staging(buffer_bytes(self._chunks), self._device)
        except (TransferFailed, OSError) as error:
            self.leave()
            self._pass_by()
            return str(error)
        for chunk in packed(self._parameters(), self._chunks, buffer, self._dtype):
            if failure:
                continue  # other ranks still gather
            write_header(buffer, epoch, version, chunk)
            try:
                channel.broadcast(buffer[: HEADER_BYTES + chunk.num_bytes])
            except TransferFailed as error:
                failure = str(error)
                self.leave()
        return failure

    def leave(self) -> None:
        """Leave the group, if any. Its other members get an error when they wait for it."""
        if self._channel is not None:
            self._channel.close()
        self._channel = self._store = None

    @property
    def _own_device(self) -> torch.device:
        # each rank sees one GPU only
        return torch.device("cuda:0" if self._device == "cuda" else "cpu")

    def _cut(self, chunk_bytes: int) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], list[int]]:
        """Return names, shapes and sizes in bytes, and compute the chunks."""
        if self._layout is None:
            found = [(name, tuple(parameter.shape)) for name, parameter in self._parameters()]
            self._layout = tuple(name for name, _ in found), tuple(shape for _, shape in found)
        names, shapes = self._layout
        sizes = [math.prod(shape) * self._dtype.itemsize for shape in shapes]
        self._chunks = chunks_of(sizes, chunk_bytes)
        return names, shapes, sizes

    def _pass_by(self) -> None:
        for _ in self._parameters():
            pass
