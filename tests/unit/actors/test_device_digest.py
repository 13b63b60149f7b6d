"""The digest of a tensor on its device: against a NumPy reference, and what changes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.weights import device_digest as module
from actors.weights.device_digest import BLOCK_WORDS, device_digest

BLOCK_BYTES = 8 * BLOCK_WORDS
CHUNK_BYTES = module._BLOCKS_ON_CPU * BLOCK_BYTES
contents = st.binary(min_size=1, max_size=400)


def reference(data: bytes) -> str:
    """The definition in unsigned arithmetic, block by block."""

    def mix(words: np.ndarray) -> np.ndarray:
        mixed = words * np.uint64(0xBF58476D1CE4E5B9)
        return mixed ^ (mixed >> np.uint64(32))

    words = mix(np.frombuffer(data + bytes(-len(data) % 8), dtype="<u8"))
    digits = ""
    for seed, factor in (
        (0x9E3779B97F4A7C15, 0x243F6A8885A308D3),
        (0x94D049BB133111EB, 0xADF85458A2BB4A9B),
    ):
        weights = mix(mix(np.arange(1, BLOCK_WORDS + 1, dtype=np.uint64) * np.uint64(seed))) | np.uint64(1)
        lane = len(data)
        for start in range(0, len(words), BLOCK_WORDS):
            block = words[start : start + BLOCK_WORDS]
            lane = (lane * factor + int((block * weights[: len(block)]).sum(dtype=np.uint64))) % 2**64
        digits += f"{lane:016x}"
    return digits


def tensor_of(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@pytest.mark.parametrize("size", [1, 7, 8, 9, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 8, CHUNK_BYTES + 3])
def test_equals_the_reference(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    assert device_digest(tensor_of(data)) == reference(data)


@given(contents)
def test_equals_the_reference_for_any_content(data: bytes) -> None:
    assert device_digest(tensor_of(data)) == reference(data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float64])
def test_reads_the_bytes_of_any_dtype_and_offset(dtype: torch.dtype) -> None:
    whole = torch.randn(1001).to(dtype)
    for part in (whole, whole[1:], whole[3:1000]):
        assert device_digest(part) == reference(part.contiguous().view(torch.uint8).numpy().tobytes())


@given(contents, st.data())
def test_a_changed_byte_changes_both_lanes(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[at] ^= draw.draw(st.integers(1, 255))
    before, after = device_digest(tensor_of(data)), device_digest(tensor_of(bytes(changed)))
    assert before[:16] != after[:16] and before[16:] != after[16:]


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=2, max_size=100), st.data())
def test_swapped_elements_change_it(values: list[int], draw: st.DataObject) -> None:
    first, second = (draw.draw(st.integers(0, len(values) - 1)) for _ in range(2))
    swapped = list(values)
    swapped[first], swapped[second] = values[second], values[first]
    same = device_digest(torch.tensor(values, dtype=torch.int16)) == device_digest(
        torch.tensor(swapped, dtype=torch.int16)
    )
    assert same == (values == swapped)


@given(contents, st.integers(1, 20))
def test_shifted_content_and_another_length_change_it(data: bytes, by: int) -> None:
    padded = [bytes(before) + data + bytes(by - before) for before in (0, by)]
    found = {text: device_digest(tensor_of(text)) for text in (data, *padded)}
    assert len(set(found.values())) == len(found)


def test_swapped_blocks_change_it() -> None:
    """Also those whose words differ only in the highest bit, which even weights would miss."""
    data = torch.zeros(3 * BLOCK_WORDS, dtype=torch.int64)
    data[5] = -(2**63)
    blocks = data.view(3, BLOCK_WORDS)
    found = {device_digest(blocks[list(order)].contiguous()) for order in [(0, 1, 2), (1, 0, 2), (1, 2, 0)]}
    found |= {device_digest(data.roll(by)) for by in (1, 2, 64)}
    assert len(found) == 6


def test_mixing_is_a_bijection() -> None:
    """An arithmetic shift without the mask maps a word and one with flipped halves to one."""
    word = torch.tensor([0x0123456789ABCDEF])
    back = pow(module._MIX, -1, 2**64)
    inverse = torch.tensor([module._signed(back)])
    flipped = (word * module._signed(module._MIX)) ^ -1
    assert module._mix(word) != module._mix(flipped * inverse)


def test_a_tensor_with_gaps_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        device_digest(torch.zeros(4, 4)[:, :2])
    assert device_digest(torch.empty(0)) == "0" * 32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_and_a_cpu_agree() -> None:
    tensor = torch.randn(3 * BLOCK_WORDS + 5)
    assert device_digest(tensor.cuda()) == device_digest(tensor)
