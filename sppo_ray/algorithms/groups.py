"""Groups samples by prompt. A group lacks the samples whose verifier failed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from sppo_ray.algorithms.base import Advantage, RewardedSample


def by_group(
    samples: Sequence[RewardedSample], compare: Callable[[list[float]], list[float]]
) -> list[Advantage]:
    """Apply `compare` to the rewards of each group and return one advantage per sample, in order.

    `compare` maps the rewards of one group to its advantages, in the same order.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        members[sample.group].append(index)
    result: list[Advantage] = [0.0] * len(samples)
    for indices in members.values():
        compared = compare([samples[index].reward for index in indices])
        for index, advantage in zip(indices, compared, strict=True):
            result[index] = advantage
    return result
