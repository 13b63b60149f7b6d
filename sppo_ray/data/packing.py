"""Packs the samples of one optimizer step into micro-batches for each rank.

    samples --deal--> one list per rank --bins--> micro-batches of similar size --> Minibatch

A micro-batch holds whole rows, concatenated without padding. The result depends only on the samples
and their order.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from sppo_ray.types import MicroBatch, Minibatch, TrainingSample, Trajectory

_NOTHING = np.zeros(1, dtype=np.float32)
_ONE = np.ones(1, dtype=np.int32)
_FILLER = MicroBatch(np.zeros(2, dtype=np.int32), _ONE, _ONE, _NOTHING, _NOTHING, _NOTHING, _NOTHING)


def num_tokens(sample: TrainingSample) -> int:
    """Return the number of prompt and response tokens of a sample."""
    return len(sample.scored.prompt.token_ids) + len(sample.scored.trajectory.response_ids)


def pack(samples: Sequence[TrainingSample], ranks: int, max_tokens: int) -> Minibatch:
    """Shard the samples of one optimizer step.

    Every sample is in exactly one micro-batch. A micro-batch holds at most `max_tokens` tokens.
    All ranks have the same number of micro-batches, because forward and backward are collectives
    under ZeRO. Ranks with fewer micro-batches get fillers of weight 0.

    Raises:
        ValueError: no samples, an empty prompt or response, a sample longer than `max_tokens`, or
            log-probs or advantages without one entry per action token.
    """
    if not samples:
        raise ValueError("a minibatch needs at least one sample")
    for sample in samples:
        _check(sample, max_tokens)
    indices_by_rank = layout(samples, ranks, max_tokens)
    most = max(len(micro_batches) for micro_batches in indices_by_rank)
    shards = []
    for micro_batches in indices_by_rank:
        filled = [_micro_batch([samples[index] for index in indices]) for indices in micro_batches]
        shards.append(tuple(filled) + (_FILLER,) * (most - len(filled)))
    return Minibatch(
        ranks=tuple(shards),
        num_global_tokens=sum(sample.scored.trajectory.num_actions for sample in samples),
        num_global_samples=len(samples),
    )


def layout(samples: Sequence[TrainingSample], ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """Return the sample indices of each micro-batch of `pack` as `[rank][micro-batch]`, without
    fillers.
    """
    lengths = [num_tokens(sample) for sample in samples]
    assigned = deal(lengths, ranks)
    own_lengths = [[lengths[index] for index in own] for own in assigned]
    most = max(len(bins(own, max_tokens)) for own in own_lengths)
    return [
        [[own[position] for position in row] for row in bins(own_length, max_tokens, at_least=most)]
        for own, own_length in zip(assigned, own_lengths, strict=True)
    ]


def unpack_logprobs(
    packed: Minibatch, samples: Sequence[TrainingSample], max_tokens: int
) -> list[np.ndarray]:
    """Return `old_logprobs` of each sample, [action tokens] float32.

    `packed` is the result of `pack` for `samples`. The result is in the order of `samples`.
    """
    found: list[np.ndarray] = [_NOTHING] * len(samples)
    for shard, micro_batches in zip(
        packed.ranks, layout(samples, len(packed.ranks), max_tokens), strict=True
    ):
        # strict=False: the fillers at the end have no indices
        for micro_batch, indices in zip(shard, micro_batches, strict=False):
            rows = np.split(micro_batch.old_logprobs, micro_batch.action_lengths.cumsum()[:-1])
            for index, logprobs in zip(indices, rows, strict=True):
                found[index] = logprobs
    return found


def bins(lengths: Sequence[int], max_tokens: int, *, at_least: int = 1) -> list[list[int]]:
    """Put rows into bins of at most `max_tokens` tokens; return the row indices of each bin.

    The number of bins is that of first-fit-decreasing, or `at_least` if that is more. Bins have
    similar sizes where possible. Indices in a bin are ascending. A row longer than `max_tokens`
    gets its own bin.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    tight = _first_fit(lengths, order, max_tokens)
    balanced = _balanced(lengths, order, max_tokens, max(len(tight), at_least))
    return [sorted(rows) for rows in balanced or tight]


def _first_fit(lengths: Sequence[int], order: Sequence[int], max_tokens: int) -> list[list[int]]:
    # A binary tree over as many bins as there are rows: leaf `leaves + n` is the room of bin n, and
    # a node is the largest of its two children, so that a place is found in log2(rows) steps.
    leaves = 1 << max(0, len(order) - 1).bit_length()
    room = [max_tokens] * (2 * leaves)
    filled: list[list[int]] = []
    for index in order:
        length = min(lengths[index], max_tokens)
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        if node - leaves == len(filled):
            filled.append([])
        filled[node - leaves].append(index)
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return filled


def _balanced(
    lengths: Sequence[int], order: Sequence[int], max_tokens: int, count: int
) -> list[list[int]] | None:
    """Put each row into the emptiest of `count` bins; return None when a row does not fit. Empty
    bins are left out.
    """
    balanced: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, position) for position in range(count)]  # a heap of (load, bin)
    for index in order:
        load, position = emptiest[0]
        if load and load + lengths[index] > max_tokens:
            return None
        balanced[position].append(index)
        heapq.heapreplace(emptiest, (load + lengths[index], position))
    return [rows for rows in balanced if rows]


def deal(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Assign rows to ranks; return the ascending row indices of each rank.

    Rows are assigned in descending length, from the first rank to the last and back. So the ranks
    get equal numbers of rows (+-1) and similar numbers of tokens.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    assigned: list[list[int]] = [[] for _ in range(ranks)]
    for position, index in enumerate(order):
        turn, rank = divmod(position, ranks)
        assigned[rank if turn % 2 == 0 else ranks - 1 - rank].append(index)
    return [sorted(rows) for rows in assigned]


def _check(sample: TrainingSample, max_tokens: int) -> None:
    trajectory = sample.scored.trajectory
    length = trajectory.num_actions
    if not length:
        raise ValueError(f"{trajectory.request_id}: empty response, nothing to train on")
    if trajectory.turns is not None and trajectory.turns.lengths.sum() != len(trajectory.response_ids):
        raise ValueError(f"{trajectory.request_id}: its turns and its response differ in length")
    if num_tokens(sample) > max_tokens:
        raise ValueError(
            f"{trajectory.request_id}: {num_tokens(sample)} tokens exceed max_tokens_per_microbatch "
            f"{max_tokens}"
        )
    if not len(sample.scored.prompt.token_ids):
        raise ValueError(f"{trajectory.request_id}: empty prompt")
    if len(trajectory.response_logprobs) != length or np.size(sample.advantage) not in (1, length):
        raise ValueError(f"{trajectory.request_id}: log-probs or advantages and response differ in length")


def _micro_batch(samples: Sequence[TrainingSample]) -> MicroBatch:
    trajectories = [sample.scored.trajectory for sample in samples]
    prompts = [sample.scored.prompt.token_ids for sample in samples]
    responses = [trajectory.response_ids for trajectory in trajectories]
    rows = [part for row in zip(prompts, responses, strict=True) for part in row]
    logprobs = _flat([trajectory.response_logprobs for trajectory in trajectories], np.float32)
    lengths = np.array([len(ids) for ids in responses], dtype=np.int32)
    return MicroBatch(
        token_ids=_flat(rows, np.int32),
        prompt_lengths=np.array([len(prompt) for prompt in prompts], dtype=np.int32),
        response_lengths=lengths,
        old_logprobs=logprobs,
        rollout_logprobs=logprobs,
        advantages=_advantages(samples),
        weights=np.ones(len(samples), dtype=np.float32),
        action_mask=action_mask(trajectories),
    )


def action_mask(trajectories: Sequence[Trajectory]) -> np.ndarray | None:
    """Return which tokens of the responses are actions, [response tokens of all] bool; None = all
    of them.
    """
    if all(trajectory.turns is None for trajectory in trajectories):
        return None
    masks = [trajectory.action_mask for trajectory in trajectories]
    return np.concatenate(
        [
            np.ones(len(trajectory.response_ids), dtype=bool) if mask is None else mask
            for trajectory, mask in zip(trajectories, masks, strict=True)
        ]
    )


def _advantages(samples: Sequence[TrainingSample]) -> np.ndarray:
    lengths = [sample.scored.trajectory.num_actions for sample in samples]
    if all(isinstance(sample.advantage, float) for sample in samples):
        return np.repeat(np.array([sample.advantage for sample in samples], dtype=np.float32), lengths)
    return _flat([sample.token_advantages for sample in samples], np.float32)


def _flat(rows: Sequence[Sequence[float]], dtype: type) -> np.ndarray:
    return np.concatenate([np.asarray(row, dtype=dtype) for row in rows])
