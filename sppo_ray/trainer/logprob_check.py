"""Checks that the engines sample from the learner's policy, before each step's first update.

    samples of the current version --learner's log-probs--> mean |engine - learner| per engine
        --> within the limit: update            --> else: WeightMismatch names the engine

The probe at the weight sync compares one fixed sequence. This check compares sampled tokens, so it
includes the engine's batching, KV cache and sampler. The mean separates a wrong policy from
rounding: weights that were not repacked, a KV cache of the previous version or another temperature
change it by tenths of a nat, float32 kernels by millionths, bfloat16 kernels by hundredths.

Only tokens sampled with the learner's current weights can be compared: all tokens of a response
that began with them, and the last token of a response that ended with them; of an episode, those of
its last turns. With max_staleness > 0 a first minibatch often has no such token.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sppo_ray.config import RunConfig
from sppo_ray.data.packing import pack, unpack_logprobs
from sppo_ray.protocols import Learner
from sppo_ray.rollout.weight_sync import ProbeTolerance, WeightMismatch
from sppo_ray.types import Minibatch, TrainingSample, Trajectory

CHECKED_SAMPLES = 16
"""Maximum number of samples per engine."""


class LogprobCheck:
    """The check of a run.

    It costs one forward pass of the learner over a few samples per step, or nothing with
    old_logprobs = learner.
    """

    def __init__(self, config: RunConfig, learner: Learner) -> None:
        self._learner = learner
        self._settings = config.learner
        self._has_own_logprobs = config.algorithm.old_logprobs == "learner"
        sync, rollout = config.weight_sync, config.rollout
        self._is_on = sync.verify
        self._limit = first_batch_limit(rollout.dtype, rollout.temperature, sync.max_first_batch_difference)

    async def check(
        self, samples: Sequence[TrainingSample], packed: Minibatch | None, *, version: int
    ) -> Mapping[str, float]:
        """Check a step's first minibatch and return its metrics. Raises WeightMismatch.

        `version` is the version of the learner's weights. `packed` is the minibatch for the
        learner, or None while only the critic is trained.
        """
        checked = checked_samples(samples, version)
        if not self._is_on or not checked:
            return {}
        most = self._settings.max_tokens_per_microbatch
        if packed is None or not self._has_own_logprobs:
            packed = await self._learner.recompute_logprobs(pack(checked, self._settings.ranks, most))
        else:
            checked = samples
        own = unpack_logprobs(packed, checked, most)
        return check_first_batch(checked, own, version=version, limit=self._limit).metrics()


def checked_samples(samples: Sequence[TrainingSample], version: int) -> list[TrainingSample]:
    """Return up to CHECKED_SAMPLES samples of each engine that have comparable tokens.

    A few hundred tokens are enough to detect a wrong policy.
    """
    found: dict[str, list[TrainingSample]] = defaultdict(list)
    for sample in samples:
        trajectory = sample.scored.trajectory
        if comparable_tokens(trajectory, version) and len(found[trajectory.worker]) < CHECKED_SAMPLES:
            found[trajectory.worker].append(sample)
    return [sample for rows in found.values() for sample in rows]


@dataclass(frozen=True, slots=True)
class FirstBatch:
    """Result of the comparison."""

    tokens: int  # compared
    # mean |engine - learner| of the worst engine, nats; 0 when nothing could be compared
    difference: float

    def metrics(self) -> dict[str, float]:
        return {
            "mismatch/first_batch_difference": self.difference,
            "mismatch/first_batch_tokens": self.tokens,
        }


def first_batch_limit(dtype: str, temperature: float, limit: float | None) -> float:
    """Return the largest allowed mean difference of an engine, in nats.

    `limit`: None = the probe's mean for `dtype`. A temperature below 1 multiplies every difference
    of logits by 1 / temperature.
    """
    return limit if limit is not None else ProbeTolerance.for_dtype(dtype).mean / min(1.0, temperature)


def comparable_tokens(trajectory: Trajectory, version: int) -> int:
    """Return the number of last action tokens that were certainly sampled by policy `version`."""
    if trajectory.policy_version_end != version:
        return 0
    if trajectory.policy_version == version:
        return trajectory.num_actions
    if trajectory.turns is None:
        return 1
    count = 0
    for (length, _), (first, last) in zip(
        trajectory.turns.lengths[::-1].tolist(), trajectory.turns.versions[::-1].tolist(), strict=True
    ):
        count += 0 if last != version else length if first == version else 1
        if first != version:
            break
    return count


def check_first_batch(
    samples: Sequence[TrainingSample], logprobs: Sequence[np.ndarray], *, version: int, limit: float
) -> FirstBatch:
    """Compare the engines' log-probs with the learner's `logprobs`, [action tokens] per sample.

    `version` is the version of the learner's weights. Raises WeightMismatch naming the worst engine
    when its mean difference is above `limit` or NaN.
    """
    differences: dict[str, list[np.ndarray]] = defaultdict(list)
    for sample, own in zip(samples, logprobs, strict=True):
        trajectory = sample.scored.trajectory
        if count := comparable_tokens(trajectory, version):
            engine = np.asarray(trajectory.response_logprobs, dtype=np.float32)[-count:].astype(np.float64)
            differences[trajectory.worker].append(np.abs(engine - np.asarray(own)[-count:]))
    found = {worker: np.concatenate(parts) for worker, parts in differences.items()}
    means = {worker: float(parts.mean()) for worker, parts in found.items()}
    if not means:
        return FirstBatch(0, 0.0)
    worst = max(means, key=lambda worker: math.inf if math.isnan(means[worker]) else means[worker])
    if not means[worst] <= limit:  # `not <=`, so that NaN fails
        raise WeightMismatch(
            worst,
            f"log-probs of the first {len(found[worst])} tokens that it sampled at policy version "
            f"{version} differ from "
            f"the learner's by {means[worst]:.3g} on average, allowed {limit:.3g} "
            "(weight_sync.max_first_batch_difference): it "
            "does not sample from the learner's policy; nothing of this step was trained on",
        )
    return FirstBatch(sum(map(len, found.values())), means[worst])
