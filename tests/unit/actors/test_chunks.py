"""The cut of a version into chunks, and the digest over them."""

from __future__ import annotations

import pytest
import torch

from actors.weights.chunks import (
    HEADER_BYTES,
    Chunk,
    buffer_bytes,
    chunks_of,
    combined_digest,
    header_fault,
    packed,
    write_header,
)


def test_chunks_are_filled_in_order_up_to_the_limit() -> None:
    # 4 + 4 fit into 8, 10 is larger than the limit and alone, 2 + 5 fit
    assert chunks_of([4, 4, 10, 2, 5], 8) == [
        Chunk(0, 0, 2, 0, 8),
        Chunk(1, 2, 3, 8, 18),
        Chunk(2, 3, 5, 18, 25),
    ]
    assert chunks_of([4, 4], 1000) == [Chunk(0, 0, 2, 0, 8)]
    assert chunks_of([], 8) == []


def test_chunks_together_are_the_flat_buffer() -> None:
    torch.manual_seed(0)
    tensors = {f"p{i}": torch.randn(size) for i, size in enumerate([(3, 5), (7,), (64,), (2, 2)])}
    flat = torch.cat([t.reshape(-1) for t in tensors.values()]).bfloat16().view(torch.uint8)
    chunks = chunks_of([2 * t.numel() for t in tensors.values()], 50)
    buffer = torch.empty(buffer_bytes(chunks), dtype=torch.uint8)
    assert len(buffer) == HEADER_BYTES + 128  # 64 bfloat16 are the largest
    found = [
        buffer[HEADER_BYTES : HEADER_BYTES + chunk.num_bytes].clone()
        for chunk in packed(iter(tensors.items()), chunks, buffer, torch.bfloat16)
    ]
    assert [len(part) for part in found] == [44, 128, 8]
    assert torch.equal(torch.cat(found), flat)


def test_parameters_that_were_not_announced_are_an_error() -> None:
    chunks, buffer = chunks_of([4], 100), torch.empty(100, dtype=torch.uint8)
    more = iter([("a", torch.ones(1)), ("b", torch.ones(1))])
    with pytest.raises(RuntimeError, match="b is no part of the layout"):
        list(packed(more, chunks, buffer, torch.float32))


def test_a_header_names_what_is_wrong() -> None:
    chunk, buffer = Chunk(2, 5, 6, 100, 140), torch.empty(HEADER_BYTES + 40, dtype=torch.uint8)
    write_header(buffer, 3, 17, chunk)
    assert header_fault(buffer, 3, 17, chunk) == ""
    assert header_fault(buffer, 4, 17, chunk) == "received epoch 3, expected 4"
    assert header_fault(buffer, 3, 18, chunk) == "received version 17, expected 18"
    assert header_fault(buffer, 3, 17, Chunk(1, 5, 6, 100, 140)) == "received chunk 2, expected 1"
    assert "magic number" in header_fault(torch.zeros_like(buffer), 3, 17, chunk)


def test_the_digest_depends_on_the_order_of_the_chunks() -> None:
    assert combined_digest(["a", "b"]) != combined_digest(["b", "a"])
    assert len(combined_digest(["a"])) == 32
