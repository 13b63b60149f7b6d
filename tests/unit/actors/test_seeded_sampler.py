from __future__ import annotations

import numpy as np
import torch

from actors.seeded_sampler import Draws, keyed_numbers


def generator(seed: int) -> torch.Generator:
    made = torch.Generator()
    made.manual_seed(seed)
    return made


def test_a_number_depends_only_on_seed_and_position() -> None:
    alone, together = Draws(), Draws()
    one = generator(7)
    mine = [int(alone.numbers({0: one}, 1)[0]) for _ in range(5)]
    others = {0: generator(1), 1: generator(7), 2: generator(3)}
    rows = [together.numbers(others if step % 2 else {**others, 5: generator(9)}, 6)[1] for step in range(5)]
    assert [int(number) for number in rows] == mine
    assert len(set(mine)) == 5 and all(0 <= number < 2**31 for number in mine)


def test_a_row_moves_with_its_generator() -> None:
    draws, one = Draws(), generator(7)
    first = int(draws.numbers({0: one}, 4)[0])
    second = int(draws.numbers({3: one}, 4)[3])
    again = Draws()
    same = generator(7)
    assert [int(again.numbers({2: same}, 4)[2]) for _ in range(2)] == [first, second]


def test_numbers_by_hand() -> None:
    def mix(state: int) -> int:
        mask = 2**64 - 1
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        return state ^ (state >> 31)

    seeds, positions = [0, 1, 2**63 - 1], [0, 4, 1]
    expected = [
        mix((mix(seed) + (position + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 33
        for seed, position in zip(seeds, positions, strict=True)
    ]
    found = keyed_numbers(np.array(seeds, dtype=np.uint64), np.array(positions, dtype=np.uint64))
    assert found.tolist() == expected


def test_numbers_are_spread_evenly() -> None:
    seeds, positions = np.meshgrid(np.arange(500, dtype=np.uint64), np.arange(200, dtype=np.uint64))
    numbers = keyed_numbers(seeds.ravel(), positions.ravel())
    counts = np.bincount(numbers >> 25, minlength=64)  # 64 bins of 1,562.5
    assert ((counts - 1562.5) ** 2 / 1562.5).sum() < 120  # chi-square, 63 degrees: 1e-5 above it


def test_generators_of_finished_requests_are_forgotten() -> None:
    draws, kept = Draws(), generator(0)
    draws.numbers({0: kept}, 1)
    for seed in range(9000):
        draws.numbers({0: generator(seed)}, 1)
    assert len(draws._drawn) < 9000
    assert draws._drawn[id(kept)][2] == 1
