from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.algorithms.tensor_ops import split_samples, to_tensors
from sppo_ray.data.batching import chunk, pack
from sppo_ray.types import MicroBatch, TrainingSample
from tests.training_data import training_sample


def sample(index: int, prompt: int, response: int) -> TrainingSample:
    """The first prompt token is the sample's name."""
    return training_sample(f"s{index}", [index, *[7] * (prompt - 1)], [8] * response, [-1.0] * response, 1.0, 0.25)


def names(batch: MicroBatch) -> list[int]:
    return [ids[0] for ids, weight in zip(batch.prompt_ids, batch.weights, strict=True) if weight]


def padded(batch: MicroBatch) -> int:
    lengths = [len(p) + len(r) for p, r in zip(batch.prompt_ids, batch.response_ids, strict=True)]
    return max(lengths) * len(lengths)


def test_chunks_of_rows_by_length() -> None:
    # longest first: 9, 8, since 3 * 9 > 20; then 5, 5, 3, 2, since 4 * 5 = 20
    assert chunk([5, 9, 2, 8, 5, 3], 20) == [[1, 3], [0, 4, 5, 2]]
    assert chunk([5, 9, 2, 8, 5, 3], 15) == [[1], [3], [0, 4, 5], [2]]
    assert chunk([], 15) == []


def test_two_ranks_are_dealt_to_and_fro_and_evened_out() -> None:
    # lengths 10, 9, 8, 7, 2 -> rank 0: 10, 7, 2; rank 1: 9, 8. Bound 10: [10], [7], [2] and [9], [8], filler.
    samples = [sample(i, length - 1, 1) for i, length in enumerate([10, 9, 8, 7, 2])]
    minibatch = pack(samples, ranks=2, max_tokens=10)
    assert [[names(batch) for batch in rank] for rank in minibatch.ranks] == [[[0], [3], [4]], [[1], [2], []]]
    assert minibatch.ranks[1][2].weights == (0.0,)
    assert (minibatch.num_global_tokens, minibatch.num_global_samples) == (5, 5)
    assert minibatch.ranks[0][0].advantages == ((0.75,),)
    assert minibatch.ranks[1][2].advantages == ((0.0,),)


lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(lengths, st.integers(1, 4), st.integers(60, 200))
def test_every_sample_once_in_bounds_and_equally_many_batches(shape: list[tuple[int, int]], ranks: int, bound: int) -> None:
    samples = [sample(index, *size) for index, size in enumerate(shape)]
    minibatch = pack(samples, ranks, bound)
    batches = [batch for rank in minibatch.ranks for batch in rank]
    assert sorted(name for batch in batches for name in names(batch)) == list(range(len(samples)))
    assert all(padded(batch) <= bound for batch in batches)
    assert len({len(rank) for rank in minibatch.ranks}) == 1 and len(minibatch.ranks) == ranks
    weighted = [len(r) * w for batch in batches for r, w in zip(batch.response_ids, batch.weights, strict=True)]
    assert minibatch.num_global_tokens == sum(weighted) == sum(response for _, response in shape)
    assert minibatch == pack(samples, ranks, bound)
    counts = [sum(len(names(batch)) for batch in rank) for rank in minibatch.ranks]
    assert max(counts) - min(counts) <= 1


def test_what_cannot_be_packed_names_the_sample() -> None:
    with pytest.raises(ValueError, match="s0: 11 tokens exceed max_tokens_per_microbatch 10"):
        pack([sample(0, 10, 1)], 1, 10)
    with pytest.raises(ValueError, match="s3: empty response"):
        pack([sample(3, 4, 0)], 1, 10)
    with pytest.raises(ValueError, match="at least one"):
        pack([], 1, 10)


def micro_batch() -> MicroBatch:
    return MicroBatch(
        prompt_ids=((11, 12, 13), (21,)),
        response_ids=((14, 15), (22, 23, 24)),
        old_logprobs=((-0.1, -0.2), (-0.3, -0.4, -0.5)),
        rollout_logprobs=((-1.0, -2.0), (-3.0, -4.0, -5.0)),
        advantages=((0.25, 0.125), (-0.5, 0.0, 0.5)),
        weights=(1.0, 0.0),
    )


def test_the_mask_marks_the_positions_that_predict_the_response() -> None:
    batch = to_tensors(micro_batch(), pad_id=9)
    assert batch.token_ids.tolist() == [[11, 12, 13, 14, 15], [21, 22, 23, 24, 9]]
    # 14 is predicted at 13's position (2), 15 at 14's (3); 22, 23, 24 at positions 0, 1, 2
    assert batch.loss_mask.int().tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert batch.targets.tolist() == [14, 15, 22, 23, 24]
    assert torch.equal(batch.token_ids[:, 1:][batch.loss_mask[:, :-1]], batch.targets)
    assert batch.old_logprobs.tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4, -0.5])
    assert batch.rollout_logprobs.tolist() == [-1.0, -2.0, -3.0, -4.0, -5.0]
    assert batch.advantages.tolist() == [0.25, 0.125, -0.5, 0.0, 0.5]
    assert batch.reference_logprobs is None
    assert batch.weights.tolist() == [1.0, 0.0]


def test_splitting_undoes_the_flattening() -> None:
    batch = to_tensors(micro_batch())
    assert split_samples(batch.rollout_logprobs, batch.lengths) == [(-1.0, -2.0), (-3.0, -4.0, -5.0)]


def test_the_references_log_probs_come_along() -> None:
    with_reference = replace(micro_batch(), reference_logprobs=((-1.5, -2.5), (-3.5, -4.5, -5.5)))
    assert to_tensors(with_reference).reference_logprobs.tolist() == [-1.5, -2.5, -3.5, -4.5, -5.5]


def test_a_number_a_response_becomes_one_a_token_and_one_a_token_stays() -> None:
    scalar = sample(0, 2, 3)
    assert pack([scalar], 1, 10).ranks[0][0].advantages == ((0.75, 0.75, 0.75),)
    per_token = replace(scalar, advantage=(0.5, 0.25, -1.0))
    assert pack([per_token], 1, 10).ranks[0][0].advantages == ((0.5, 0.25, -1.0),)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("old_logprobs", "log-probs and response differ in length"),
        ("rollout_logprobs", "log-probs and response differ in length"),
        ("advantages", "advantages and response differ in length"),
        ("reference_logprobs", "reference log-probs and response differ in length"),
    ],
)
def test_what_is_said_of_tokens_must_fit_the_response(field: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_tensors(replace(micro_batch(), **{field: ((-0.1,), (-0.3, -0.4, -0.5))}))
