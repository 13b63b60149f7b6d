"""Computes a digest of a tensor where it lies, so that weights on a GPU need no copy to the host.

Bytes are read as little-endian 64-bit words, the last one filled with zeros, in blocks of
BLOCK_WORDS. All arithmetic wraps around at 2^64:

    x_j     = mix(word_j), a bijection
    s_k     = sum over j of x_j * w_j   for block k; w_j is odd and differs between the two lanes
    lane    = ((num_bytes * f + s_0) * f + s_1) * f + ...   f is odd and differs too

Integer sums do not depend on the order of addition, so a CPU and a GPU give equal digests. A change
within one word always changes both lanes; of other changes about one in 2^64 or fewer goes unseen
in a lane. Like `flat_digest` it detects transport errors, not manipulation. Imports only torch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BLOCK_WORDS = 2**16
# 32 and 2 MiB at a time: the temporary tensors fit into the cache of a large GPU or a CPU
_BLOCKS_ON_GPU, _BLOCKS_ON_CPU = 64, 4
_LOW_HALF = 2**32 - 1
# odd constants of splitmix64 and of the fractional parts of pi and e
_MIX = 0xBF58476D1CE4E5B9
_SEEDS = (0x9E3779B97F4A7C15, 0x94D049BB133111EB)
_FACTORS = (0x243F6A8885A308D3, 0xADF85458A2BB4A9B)


@torch.no_grad()
def device_digest(tensor: Tensor) -> str:
    """Return the digest of the bytes of `tensor` (any dtype, device and shape) as 32 hex digits.

    It needs about 150 MB on the device, whatever the size of the tensor.

    Raises ValueError when `tensor` is not contiguous, because a digest of a copy would not verify
    the tensor itself.
    """
    if not tensor.is_contiguous():
        raise ValueError("device_digest needs a contiguous tensor")
    data = tensor.detach().reshape(-1).view(torch.uint8)
    weights = [_weights(seed, data.device) for seed in _SEEDS]
    sums = [_block_sums(words, weights) for words in _chunks(data)]
    lanes = [data.numel(), data.numel()]
    for row in torch.cat(sums).tolist() if sums else []:
        lanes = [(lane * f + part) % 2**64 for lane, f, part in zip(lanes, _FACTORS, row, strict=True)]
    return "".join(f"{lane:016x}" for lane in lanes)


def _chunks(data: Tensor) -> list[Tensor]:
    """Split bytes into views of int64 words; copy only a chunk that is not aligned or full."""
    chunks: list[Tensor] = []
    blocks = _BLOCKS_ON_GPU if data.is_cuda else _BLOCKS_ON_CPU
    for chunk in data.split(8 * BLOCK_WORDS * blocks):
        if not chunk.numel():  # of an empty tensor
            continue
        if missing := -chunk.numel() % 8:
            chunk = torch.cat([chunk, chunk.new_zeros(missing)])
        elif chunk.data_ptr() % 8 or chunk.storage_offset() % 8:
            chunk = chunk.clone()
        chunks.append(chunk.view(torch.int64))
    return chunks


def _block_sums(words: Tensor, weights: list[Tensor]) -> Tensor:
    """Return [blocks, 2] int64, the sums of both lanes."""
    mixed = _mix(words)
    whole = mixed.numel() // BLOCK_WORDS * BLOCK_WORDS
    parts = [mixed[:whole].view(-1, BLOCK_WORDS), mixed[whole:].view(1, -1)]
    return torch.cat([
        torch.stack([(part * lane[: part.shape[1]]).sum(dim=1) for lane in weights], dim=1)
        for part in parts
        if part.numel()
    ])


def _mix(words: Tensor) -> Tensor:
    """Multiply by an odd constant, then add the upper half to the lower one without carry."""
    mixed = words * _signed(_MIX)
    # `>>` repeats the sign bit; without the mask two words could have equal results
    return mixed.bitwise_xor_((mixed >> 32).bitwise_and_(_LOW_HALF))


@lru_cache(maxsize=8)
def _weights(seed: int, device: torch.device) -> Tensor:
    """Return the weights of one lane, [BLOCK_WORDS] odd int64."""
    positions = torch.arange(1, BLOCK_WORDS + 1, dtype=torch.int64, device=device)
    return _mix(_mix(positions * _signed(seed))) | 1


def _signed(number: int) -> int:
    """Return the int64 of the same bits as the unsigned `number`."""
    return number - 2**64 if number >= 2**63 else number
