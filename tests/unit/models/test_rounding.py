"""Rounding to bfloat16 that keeps small updates on average."""

from __future__ import annotations

import math

import pytest
import torch

from sppo_ray.models import rounding
from sppo_ray.models.rounding import rounded

ULP = 2.0**-7  # between 1 and 2 bfloat16 has 128 numbers


def test_an_eighth_of_the_elements_gets_an_update_of_an_eighth() -> None:
    """To the nearest number, all of them would stay 1."""
    found = rounded(torch.full((200, 200), 1 + ULP / 8), torch.bfloat16, "w").float()
    assert set(found.unique().tolist()) == {1.0, 1 + ULP}
    share = (found > 1).float().mean().item()
    assert share == pytest.approx(1 / 8, abs=5 * math.sqrt(7 / 64 / 40_000))  # five standard errors


@pytest.mark.parametrize("scale", [1e-30, 0.03, 1.0, 1e30])
def test_the_mean_error_is_0_and_the_neighbours_are_kept(scale: float) -> None:
    weights = scale * torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    found = rounded(weights, torch.bfloat16, "w").float()
    error = (found - weights) / weights.abs()
    assert error.abs().max() <= ULP
    assert error.mean().abs() < 5 * error.std() / 300
    # numbers of bfloat16 stay what they are, also in a second rounding
    assert torch.equal(rounded(found, torch.bfloat16, "other").float(), found)


def test_equal_weights_give_equal_bits_and_one_step_up() -> None:
    levels = torch.linspace(1, 1 + ULP, 65)
    found = torch.stack([rounded(level.expand(64), torch.bfloat16, "w").float() for level in levels])
    assert torch.equal(found[20], rounded(levels[20].expand(64), torch.bfloat16, "w").float())
    assert (found.diff(dim=0) >= 0).all() and (found[0] == 1).all() and (found[-1] == 1 + ULP).all()
    assert not torch.equal(found[32], rounded(levels[32].expand(64), torch.bfloat16, "v").float())


def test_a_large_tensor_is_rounded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_PIECE", 1000)
    weights = torch.full((70, 130), 1 + ULP / 2).t()  # not contiguous
    found = rounded(weights, torch.bfloat16, "w")
    assert found.shape == (130, 70) and set(found.unique().tolist()) == {1.0, 1 + ULP}
    pieces = (found > 1).reshape(-1).split(1000)
    assert all(0.4 < piece.float().mean() < 0.6 for piece in pieces)
    assert not torch.equal(pieces[0], pieces[1])


def test_what_is_not_finite_is_not_hidden() -> None:
    odd = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0])
    odd = torch.cat([odd, torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)])
    found = rounded(odd, torch.bfloat16, "w")
    assert found[:2].tolist() == [math.inf, -math.inf] and found[3:5].tolist() == [0.0, 0.0]
    assert found[[2, 5, 6]].isnan().all()


def test_a_tensor_of_that_type_is_returned_as_it_is() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(3).to(dtype)
        assert rounded(weight, dtype, "w") is weight
    assert rounded(torch.ones(2, dtype=torch.bfloat16), torch.float32, "w").dtype == torch.float32
