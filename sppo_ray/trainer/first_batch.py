"""The first minibatch after a weight sync, before anything is trained on it: do the engines sample from the learner's policy?

    samples of the current version --learner's log-probs--> |engine - learner|, mean of each engine --within the limit--> update
                                                                                                  '-> WeightMismatch names it

The probe at the sync proves one fixed sequence; this is the same comparison on what the engine really sampled, with its batches,
its KV cache and its sampler. The mean tells a wrong policy from rounding: weights that were not repacked, a KV cache of the
version before or another temperature move it by tenths of a nat, float32 kernels by millionths, bfloat16 ones by hundredths.

Only tokens that the learner's present weights sampled can be compared: all of a response that began under them, the last one
of a response that they finished. With max_staleness > 0 a first minibatch often has none.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sppo_ray.config import RunConfig
from sppo_ray.data.batching import pack, unpack_logprobs
from sppo_ray.trainer.interfaces import Learner
from sppo_ray.trainer.weight_sync import ProbeTolerance, WeightMismatch
from sppo_ray.types import Minibatch, TrainingSample, Trajectory


class FirstBatchGate:
    """One run's. Costs a forward of the learner over one minibatch a step, or nothing where pi_old is recomputed anyway."""

    def __init__(self, config: RunConfig, learner: Learner) -> None:
        self._learner = learner
        self._settings = config.learner
        self._has_own_logprobs = config.algorithm.old_logprobs == "learner"
        sync, rollout = config.weight_sync, config.rollout
        self._is_on = sync.verify
        self._limit = first_batch_limit(rollout.dtype, rollout.temperature, sync.max_first_batch_difference)

    async def check(self, samples: Sequence[TrainingSample], packed: Minibatch | None, *, version: int) -> Mapping[str, float]:
        """The figures of a step's first minibatch, whose learner has the weights `version`.

        `packed` is what the learner is about to be given, None while only the critic learns. Raises WeightMismatch.
        """
        if not self._is_on or not any(comparable_tokens(sample.scored.trajectory, version) for sample in samples):
            return {}
        most = self._settings.max_tokens_per_microbatch
        if packed is None or not self._has_own_logprobs:
            packed = await self._learner.recompute_logprobs(pack(samples, self._settings.ranks, most))
        own = unpack_logprobs(packed, samples, most)
        return check_first_batch(samples, own, version=version, limit=self._limit).metrics()


@dataclass(frozen=True, slots=True)
class FirstBatch:
    """What the comparison found."""

    tokens: int  # compared
    difference: float  # mean |engine - learner| of the worst engine, nats; 0 when nothing could be compared

    def metrics(self) -> dict[str, float]:
        return {"mismatch/first_batch_difference": self.difference, "mismatch/first_batch_tokens": self.tokens}


def first_batch_limit(dtype: str, temperature: float, limit: float | None) -> float:
    """Largest allowed mean of one engine, in nats. `limit`: None = the probe's mean for `dtype`.

    A temperature below 1 magnifies every difference of the logits by 1 / temperature.
    """
    return limit if limit is not None else ProbeTolerance.for_dtype(dtype).mean / min(1.0, temperature)


def comparable_tokens(trajectory: Trajectory, version: int) -> int:
    """How many of the last tokens of a response were sampled by exactly policy `version`, as far as that is known."""
    if trajectory.policy_version_end != version:
        return 0
    return len(trajectory.response_ids) if trajectory.policy_version == version else 1


def check_first_batch(
    samples: Sequence[TrainingSample], logprobs: Sequence[tuple[float, ...]], *, version: int, limit: float
) -> FirstBatch:
    """Compare the engines' log-probs with the learner's `logprobs` (one tuple a sample), whose weights are `version`.

    Raises WeightMismatch naming the worst engine when its mean difference is above `limit` or not a number.
    """
    differences: dict[str, list[float]] = defaultdict(list)
    for sample, own in zip(samples, logprobs, strict=True):
        trajectory = sample.scored.trajectory
        count = comparable_tokens(trajectory, version)
        first = len(own) - count
        pairs = zip(trajectory.response_logprobs[first:], own[first:], strict=True)
        differences[trajectory.worker] += [abs(engine - learner) for engine, learner in pairs]
    means = {worker: math.fsum(found) / len(found) for worker, found in differences.items() if found}
    if not means:
        return FirstBatch(0, 0.0)
    worst = max(means, key=lambda worker: math.inf if math.isnan(means[worker]) else means[worker])
    if not means[worst] <= limit:  # `not <=` instead of `>`: a NaN must fail
        raise WeightMismatch(
            worst,
            f"log-probs of the first {len(differences[worst])} tokens that it sampled at policy version {version} differ from "
            f"the learner's by {means[worst]:.3g} on average, allowed {limit:.3g} (weight_sync.max_first_batch_difference): it "
            "does not sample from the learner's policy; nothing of this step was trained on",
        )
    return FirstBatch(sum(len(found) for found in differences.values()), means[worst])
