from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.algorithms.tensor_ops import to_tensors
from sppo_ray.data.packing import bins, pack, unpack_logprobs
from sppo_ray.models.packed import policy_inputs
from sppo_ray.types import MicroBatch, TokenRows, TrainingSample
from tests.training_data import micro_batch, training_sample


def sample(index: int, prompt: int, response: int) -> TrainingSample:
    """The first prompt token is the sample's name, its log-probs are the negative of it."""
    return training_sample(
        f"s{index}", [index, *[7] * (prompt - 1)], [8] * response, [-float(index)] * response, 1.0, 0.25
    )


def rows_of(batch: MicroBatch) -> list[np.ndarray]:
    return list(TokenRows(batch.token_ids, batch.prompt_lengths + batch.response_lengths))


def names(batch: MicroBatch) -> list[int]:
    return [int(row[0]) for row, weight in zip(rows_of(batch), batch.weights, strict=True) if weight]


def test_bins_are_as_few_as_first_fit_needs_and_of_like_size() -> None:
    # 9 + 8 + 5 + 5 + 3 + 2 = 32: two bins of 20. Longest first into the emptier: 9 | 8, then 5
    # goes to the 8, 5 to the 9, 3 to the 13, 2 to the 14.
    assert bins([5, 9, 2, 8, 5, 3], 20) == [[1, 2, 4], [0, 3, 5]]
    # 9, 5 | 8, 5, 2 | 3 by first fit; levelled: 9 | 8, 3 | 5, 5, 2
    assert bins([5, 9, 2, 8, 5, 3], 15) == [[1, 2], [3, 5], [0, 4]]
    assert bins([], 15) == []
    assert bins([20], 15) == [[0]]
    assert bins([4, 4], 15, at_least=2) == [[0], [1]]
    # 6, 4 | 5, 5 fits by first fit; the emptiest bin does not take the second 5
    assert bins([6, 5, 5, 4], 10) == [[0, 3], [1, 2]]


def test_two_ranks_get_balanced_micro_batches() -> None:
    # lengths 10, 9, 8, 7, 2 -> rank 0: 10, 7, 2; rank 1: 9, 8. Bound 10: [10], [7, 2] and [9], [8].
    samples = [sample(i, length - 1, 1) for i, length in enumerate([10, 9, 8, 7, 2])]
    minibatch = pack(samples, ranks=2, max_tokens=10)
    assert [[names(batch) for batch in rank] for rank in minibatch.ranks] == [[[0], [3, 4]], [[1], [2]]]
    assert (minibatch.num_global_tokens, minibatch.num_global_samples) == (5, 5)
    assert minibatch.ranks[0][0].advantages.tolist() == [0.75]

    alone = pack([sample(0, 9, 1), sample(1, 8, 1), sample(2, 3, 1)], ranks=2, max_tokens=10)
    # rank 0: 10 and a filler; rank 1: 9, 4
    assert [[names(batch) for batch in rank] for rank in alone.ranks] == [[[0], []], [[1], [2]]]
    filler = alone.ranks[0][1]
    assert filler.weights.tolist() == filler.advantages.tolist() == [0.0]


lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(lengths, st.integers(1, 4), st.integers(60, 200))
def test_every_sample_once_in_bounds_and_equally_many_batches(
    shape: list[tuple[int, int]], ranks: int, bound: int
) -> None:
    samples = [sample(index, *size) for index, size in enumerate(shape)]
    minibatch = pack(samples, ranks, bound)
    batches = [batch for rank in minibatch.ranks for batch in rank]
    assert sorted(name for batch in batches for name in names(batch)) == list(range(len(samples)))
    assert all(len(batch.token_ids) <= bound for batch in batches)
    assert len({len(rank) for rank in minibatch.ranks}) == 1 and len(minibatch.ranks) == ranks
    weighted = sum(int((batch.response_lengths * batch.weights).sum()) for batch in batches)
    assert minibatch.num_global_tokens == weighted == sum(response for _, response in shape)
    again = pack(samples, ranks, bound)
    assert [names(b) for rank in again.ranks for b in rank] == [names(b) for b in batches]
    counts = [sum(len(names(batch)) for batch in rank) for rank in minibatch.ranks]
    assert max(counts) - min(counts) <= 1
    unpacked = unpack_logprobs(minibatch, samples, bound)
    assert [row.tolist() for row in unpacked] == [[-float(i)] * r for i, (_, r) in enumerate(shape)]


def test_what_cannot_be_packed_names_the_sample() -> None:
    with pytest.raises(ValueError, match="s0/0/0: 11 tokens exceed max_tokens_per_microbatch 10"):
        pack([sample(0, 10, 1)], 1, 10)
    with pytest.raises(ValueError, match="s3/0/0: empty response"):
        pack([sample(3, 4, 0)], 1, 10)
    with pytest.raises(ValueError, match="at least one"):
        pack([], 1, 10)
    wrong = replace(sample(1, 2, 3), advantage=np.array([0.5, 0.25]))
    with pytest.raises(ValueError, match="s1/0/0: log-probs or advantages and response differ in length"):
        pack([wrong], 1, 10)


def two_rows() -> MicroBatch:
    return micro_batch(
        [(11, 12, 13), (21,)],
        [(14, 15), (22, 23, 24)],
        [(-0.1, -0.2), (-0.3, -0.4, -0.5)],
        [(-1.0, -2.0), (-3.0, -4.0, -5.0)],
        [(0.25, 0.125), (-0.5, 0.0, 0.5)],
        [1.0, 0.0],
    )


def test_the_positions_predict_the_response() -> None:
    inputs = policy_inputs(two_rows())
    assert inputs.rows.token_ids.tolist() == [[11, 12, 13, 14, 15, 21, 22, 23, 24]]
    assert inputs.rows.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]
    # 14 is predicted at 13's place (2), 15 at 14's (3); 22, 23, 24 at places 5, 6, 7
    assert inputs.positions.tolist() == [2, 3, 5, 6, 7]
    assert inputs.targets.tolist() == [14, 15, 22, 23, 24]

    batch = to_tensors(two_rows())
    assert batch.old_logprobs.tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4, -0.5])
    assert batch.rollout_logprobs.tolist() == [-1.0, -2.0, -3.0, -4.0, -5.0]
    assert batch.advantages.tolist() == [0.25, 0.125, -0.5, 0.0, 0.5]
    assert batch.reference_logprobs is None
    assert batch.weights.tolist() == [1.0, 0.0] and batch.lengths.tolist() == [2, 3]


def test_the_references_log_probs_come_along() -> None:
    reference = np.array([-1.5, -2.5, -3.5, -4.5, -5.5], dtype=np.float32)
    found = to_tensors(replace(two_rows(), reference_logprobs=reference))
    assert found.reference_logprobs.tolist() == reference.tolist()


def test_advantages_per_response_are_expanded_to_tokens() -> None:
    scalar = sample(0, 2, 3)
    assert pack([scalar], 1, 10).ranks[0][0].advantages.tolist() == [0.75, 0.75, 0.75]
    per_token = replace(scalar, advantage=np.array([0.5, 0.25, -1.0]))
    assert pack([per_token], 1, 10).ranks[0][0].advantages.tolist() == [0.5, 0.25, -1.0]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("old_logprobs", "log-probs and responses differ in length"),
        ("rollout_logprobs", "log-probs and responses differ in length"),
        ("advantages", "advantages and responses differ in length"),
        ("reference_logprobs", "reference log-probs and responses differ in length"),
    ],
)
def test_what_is_said_of_tokens_must_fit_the_response(field: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_tensors(replace(two_rows(), **{field: np.zeros(4, dtype=np.float32)}))


def test_rows_of_tokens() -> None:
    rows = TokenRows.of([(5, 6, 7), (8,), (9, 10)])
    assert [row.tolist() for row in rows] == [[5, 6, 7], [8], [9, 10]]
    assert [row.tolist() for row in rows.pick([2, 0])] == [[9, 10], [5, 6, 7]]
    assert rows.token_ids.dtype == rows.lengths.dtype == np.int32
    assert list(TokenRows.of([])) == [] and list(rows.pick([])) == []


class Counted(int):
    """A whole number that counts its comparisons."""

    comparisons = 0

    def __lt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) < int(other)

    def __gt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) > int(other)

    def __le__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) <= int(other)

    def __ge__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) >= int(other)

    def __add__(self, other: int) -> Counted:
        return Counted(int(self) + int(other))

    def __rsub__(self, other: int) -> Counted:
        return Counted(int(other) - int(self))

    __radd__ = __add__


def comparisons(rows: int) -> int:
    Counted.comparisons = 0
    bins([Counted(4_000 + row % 700) for row in range(rows)], 8_192)
    return Counted.comparisons


def test_bins_of_four_times_the_rows_take_about_four_times_the_work() -> None:
    assert comparisons(1024) < 6 * comparisons(256)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_each_row_is_in_the_first_bin_with_room(lengths: list[int]) -> None:
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = next((n for n, free in enumerate(room) if free >= length), len(room))
        if place == len(room):
            room.append(50)
        room[place] -= length
    assert len(bins(lengths, 50)) <= len(room)
    assert all(sum(lengths[index] for index in rows) <= 50 for rows in bins(lengths, 50))
