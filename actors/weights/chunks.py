"""Cuts a version of the weights into chunks that are broadcast one after another.

byte 0                 HEADER_BYTES
  |-- header -----------|-- parameters first to last - 1, consecutive, as in the flat buffer --|
      int64: magic, epoch, version, index, number of bytes

A chunk holds whole parameters, so it is as large as the largest parameter if that exceeds the
limit. Sender and receivers compute the same chunks from the layout. Imports only torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HEADER_BYTES = 64
_MAGIC = 0x5350504F57475431
_FIELDS = 5


@dataclass(frozen=True, slots=True)
class Chunk:
    """Parameters [first, last), which are the bytes [start, end) of the flat layout."""

    index: int
    first: int
    last: int
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Without the header."""
        return self.end - self.start


def chunks_of(sizes: Sequence[int], limit: int) -> list[Chunk]:
    """Cut parameters of `sizes` bytes, in their order, into chunks of at most `limit` bytes."""
    chunks: list[Chunk] = []
    first = start = end = 0
    for index, size in enumerate(sizes):
        if index > first and end + size - start > limit:
            chunks.append(Chunk(len(chunks), first, index, start, end))
            first, start = index, end
        end += size
    if sizes:
        chunks.append(Chunk(len(chunks), first, len(sizes), start, end))
    return chunks


def buffer_bytes(chunks: Sequence[Chunk]) -> int:
    """Return the size of a buffer that holds any of the chunks with its header."""
    return HEADER_BYTES + max((chunk.num_bytes for chunk in chunks), default=0)


def packed(
    parameters: Iterator[tuple[str, Tensor]], chunks: Sequence[Chunk], buffer: Tensor, dtype: torch.dtype
) -> Iterator[Chunk]:
    """Copy the parameters, cast to `dtype`, into `buffer` behind its header; yield at each full
    chunk. `buffer` is uint8. Consumes all of `parameters`, which can be a collective.
    """
    for chunk in chunks:
        data, position = buffer[HEADER_BYTES : HEADER_BYTES + chunk.num_bytes].view(dtype), 0
        for _ in range(chunk.first, chunk.last):
            _, parameter = next(parameters)
            data[position : position + parameter.numel()].copy_(parameter.reshape(-1))
            position += parameter.numel()
        yield chunk
    if (extra := next(parameters, None)) is not None:
        raise RuntimeError(f"{extra[0]} is no part of the layout that the chunks were cut from")


def write_header(buffer: Tensor, epoch: int, version: int, chunk: Chunk) -> None:
    fields = torch.tensor([_MAGIC, epoch, version, chunk.index, chunk.num_bytes], dtype=torch.int64)
    buffer[: 8 * _FIELDS].view(torch.int64).copy_(fields)


def header_fault(buffer: Tensor, epoch: int, version: int, chunk: Chunk) -> str:
    """Return how a received header differs from the expected one, or an empty text."""
    found = buffer[: 8 * _FIELDS].view(torch.int64).tolist()
    expected = [_MAGIC, epoch, version, chunk.index, chunk.num_bytes]
    if found == expected:
        return ""
    names = ("magic number", "epoch", "version", "chunk", "bytes")
    name, got, wanted = next(row for row in zip(names, found, expected, strict=True) if row[1] != row[2])
    return f"received {name} {got}, expected {wanted}"


def combined_digest(digests: Sequence[str]) -> str:
    """Return one digest, 32 hex digits, for the digests of all chunks in their order."""
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()
