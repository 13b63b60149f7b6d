"""One optimizer step's samples into padded micro-batches on each rank.

    samples --deal--> one list a rank --chunk--> micro-batches (longest first) --even out--> Minibatch

Samples of like length share a micro-batch, which keeps the padding small. Pure Python, deterministic: the same
samples in the same order give the same minibatch.
"""

from __future__ import annotations

from collections.abc import Sequence

from sppo_ray.types import MicroBatch, Minibatch, TrainingSample

_FILLER = MicroBatch(
    prompt_ids=((0,),),
    response_ids=((0,),),
    old_logprobs=((0.0,),),
    rollout_logprobs=((0.0,),),
    advantages=((0.0,),),
    weights=(0.0,),
)


def num_tokens(sample: TrainingSample) -> int:
    """Prompt and response tokens of one sample: its row's length before padding."""
    return len(sample.scored.prompt.token_ids) + len(sample.scored.trajectory.response_ids)


def pack(samples: Sequence[TrainingSample], ranks: int, max_tokens: int) -> Minibatch:
    """Shard one optimizer step's samples.

    Every sample is in exactly one micro-batch; a micro-batch holds at most `max_tokens` tokens, padding counted;
    every rank has equally many micro-batches, because each forward and backward is a collective under ZeRO: a rank
    that has fewer gets one-token fillers of weight 0.

    Raises:
        ValueError: no samples, an empty response, or a sample longer than `max_tokens`.
    """
    if not samples:
        raise ValueError("a minibatch needs at least one sample")
    _check_lengths(samples, max_tokens)
    places = layout(samples, ranks, max_tokens)
    most = max(len(micro_batches) for micro_batches in places)
    shards = []
    for micro_batches in places:
        filled = [_micro_batch([samples[index] for index in indices]) for indices in micro_batches]
        shards.append(tuple(filled) + (_FILLER,) * (most - len(filled)))
    return Minibatch(
        ranks=tuple(shards),
        num_global_tokens=sum(len(sample.scored.trajectory.response_ids) for sample in samples),
        num_global_samples=len(samples),
    )


def layout(samples: Sequence[TrainingSample], ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """`[rank][micro-batch]`: the indices of the samples that `pack` puts there, in their order; fillers left out."""
    lengths = [num_tokens(sample) for sample in samples]
    dealt = deal(lengths, ranks)
    return [[[own[place] for place in row] for row in chunk([lengths[index] for index in own], max_tokens)] for own in dealt]


def unpack_logprobs(packed: Minibatch, samples: Sequence[TrainingSample], max_tokens: int) -> list[tuple[float, ...]]:
    """The `old_logprobs` of a minibatch that `pack` made of `samples`, one tuple a sample and in their order."""
    found: list[tuple[float, ...]] = [()] * len(samples)
    for shard, micro_batches in zip(packed.ranks, layout(samples, len(packed.ranks), max_tokens), strict=True):
        for micro_batch, indices in zip(shard, micro_batches, strict=False):  # fillers stand at the end
            for index, logprobs in zip(indices, micro_batch.old_logprobs, strict=True):
                found[index] = logprobs
    return found


def chunk(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of rows in padded batches of at most `max_tokens` tokens, longest rows first; ties keep their order.

    A row longer than `max_tokens` has a batch to itself.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    for index in order:
        # The first row of a batch is its longest, so it alone decides how many rows fit.
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def deal(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices of each rank's rows: to and fro by length, longest first, so that the ranks get equal numbers (+-1) and
    near-equal token counts."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for position, index in enumerate(order):
        lap, seat = divmod(position, ranks)
        dealt[seat if lap % 2 == 0 else ranks - 1 - seat].append(index)
    return dealt


def _check_lengths(samples: Sequence[TrainingSample], max_tokens: int) -> None:
    for sample in samples:
        trajectory = sample.scored.trajectory
        if not trajectory.response_ids:
            raise ValueError(f"{trajectory.request_id}: empty response, nothing to train on")
        if num_tokens(sample) > max_tokens:
            raise ValueError(
                f"{trajectory.request_id}: {num_tokens(sample)} tokens exceed max_tokens_per_microbatch {max_tokens}"
            )


def _micro_batch(samples: Sequence[TrainingSample]) -> MicroBatch:
    trajectories = [sample.scored.trajectory for sample in samples]
    logprobs = tuple(trajectory.response_logprobs for trajectory in trajectories)
    return MicroBatch(
        prompt_ids=tuple(sample.scored.prompt.token_ids for sample in samples),
        response_ids=tuple(trajectory.response_ids for trajectory in trajectories),
        old_logprobs=logprobs,
        rollout_logprobs=logprobs,
        advantages=tuple(sample.token_advantages for sample in samples),
        weights=(1.0,) * len(samples),
    )
