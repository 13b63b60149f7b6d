"""Reading a model's memory back after a load, on a TOY model whose loaders fuse and cut parameters
as vLLM's do, and on vLLM's own. A real engine is in tests/ray/test_weight_transfer.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from actors.weights.ledger import LoadLedger
from actors.weights.read_back import ReadBack, find_places, is_readable

REPOSITORY = Path(__file__).resolve().parents[3]
SHAPES = {
    "embed": (10, 4),
    "q_proj": (8, 4),
    "k_proj": (4, 4),
    "v_proj": (4, 4),
    "down_proj": (4, 8),
    "norm": (4,),
}


class Toy(nn.Module):
    """One device of `size`: a padded embedding, fused and cut projections."""

    def __init__(self, rank: int = 0, size: int = 1, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.rank, self.size = rank, size
        self.embed = nn.Parameter(torch.zeros(12, 4, dtype=dtype))
        self.qkv_proj = nn.Parameter(torch.zeros(16 // size, 4, dtype=dtype))
        self.down_proj = nn.Parameter(torch.zeros(4, 8 // size, dtype=dtype))
        self.norm = nn.Parameter(torch.zeros(4, dtype=dtype))
        self.skipped: set[str] = set()

    def load_weights(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        first_rows = {"q_proj": 0, "k_proj": 8 // self.size, "v_proj": 12 // self.size}
        for name, whole in parameters:
            if name in self.skipped:
                continue
            if name == "embed":
                self.embed[:10].data.copy_(whole)
                self.embed[10:].data.fill_(0)
            elif name in first_rows:
                rows = whole.shape[0] // self.size
                part = whole.narrow(0, self.rank * rows, rows)
                self.qkv_proj.data.narrow(0, first_rows[name], rows).copy_(part)
            elif name == "down_proj":
                width = 8 // self.size
                self.down_proj.data.copy_(whole.narrow(1, self.rank * width, width))
            else:
                self.norm.data.copy_(whole)


def loaded(model: Toy) -> ReadBack:
    """Load random values out of one buffer, as they arrive."""
    found = ReadBack(model, SHAPES, torch.float32)
    values = torch.randn(10 * 4 + 8 * 4 + 2 * 4 * 4 + 4 * 8 + 4, generator=torch.Generator().manual_seed(0))
    sizes = [torch.Size(shape).numel() for shape in SHAPES.values()]
    parts = zip(SHAPES.items(), values.split(sizes), strict=True)
    model.load_weights(found.watch((name, part.view(shape)) for (name, shape), part in parts))
    return found


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 2), (1, 2)])
def test_fused_and_cut_parameters_are_found(rank: int, size: int) -> None:
    model = Toy(rank, size)
    assert loaded(model).num_found() == 6
    places = find_places(model.load_weights, SHAPES, torch.float32)
    (value,) = places["v_proj"]
    rows = 4 // size
    assert (value.size, value.offset) == ((rows, 4), rank * rows * 4)
    assert torch.equal(value.memory, model.qkv_proj[12 // size : 16 // size])


def test_a_single_changed_bit_is_found_in_its_parameter() -> None:
    model = Toy()
    found = loaded(model)
    row = model.qkv_proj.data[9]  # k_proj's second
    row[2] = torch.nextafter(row[2], torch.tensor(9.0))
    assert found.num_found() == 5


def test_a_parameter_that_stays_behind_is_not_found() -> None:
    model = Toy()
    model.skipped = {"norm"}
    with torch.no_grad():
        model.norm.fill_(0.5)
    found = ReadBack(model, SHAPES, torch.float32)
    assert found._places["norm"] == []
    model.skipped = set()
    found = ReadBack(model, SHAPES, torch.float32)
    list(found.watch((name, torch.ones(shape)) for name, shape in SHAPES.items()))  # and none is loaded
    assert found.num_found() == 0


def test_a_dry_run_changes_nothing() -> None:
    model = Toy()
    loaded(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_places(model.load_weights, SHAPES, torch.float32)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_memory_of_another_data_type_holds_the_rounded_values() -> None:
    model = Toy(dtype=torch.bfloat16)
    assert loaded(model).num_found() == 6


def test_the_copies_of_a_comparison_are_not_those_of_a_load() -> None:
    model = Toy(0, 2, dtype=torch.bfloat16)
    found = ReadBack(model, {"down_proj": (4, 8)}, torch.float32)
    buffer = torch.ones(4, 8)
    ledger = LoadLedger(4)
    ledger.watch(buffer, {"down_proj": (0, buffer.nbytes)})
    with ledger:
        watched = list(found.watch([("down_proj", buffer)]))  # rounded and cut, to be compared
    assert ledger.num_loaded(2) == 0
    with ledger:
        model.load_weights(watched)
    assert ledger.num_loaded(2) == found.num_found() == 1


def test_packed_weights_cannot_be_read() -> None:
    model = Toy()
    assert is_readable(model)
    model.down_proj = nn.Parameter(torch.empty(0))
    assert not is_readable(model)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_loaders_of_vllms_own_models_say_where_everything_lies() -> None:
    """Llama with a head of its own; Qwen2 with biases and a tied head."""
    command = [sys.executable, "-m", "tests.unit.actors.vllm_read_back"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "untied_llama": {"all": 21, "found": 21, "one stayed behind": 20, "one bit": 20},
        "tied_qwen": {"all": 26, "found": 26, "one stayed behind": 25, "one bit": 25},
    }
