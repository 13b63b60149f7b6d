"""The ORDER of a weight sync, apart from how bytes travel: push, pull, verify, release.

    learner --push (publish)--> [manifest, handle, probe] --pull--> every engine --receipt--> verify --> work is released

An engine is trusted with a version only after its receipt: it names the version, repeats the learner's digest of the
bytes it loaded, has loaded every parameter, and gives the learner's own log-probs on the probe sequence.
The last check runs the engine's real kernels, so it also sees what a digest cannot: weights that were loaded but
not repacked, a stale KV cache, a skipped layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sppo_ray.trainer.interfaces import PublishedWeights, WeightReceipt, WorkerFailure

FLOAT32_MAX_DIFFERENCE = 1e-3
BFLOAT16_MAX_DIFFERENCE = 1.0
BFLOAT16_MEAN_DIFFERENCE = 0.2


class WeightMismatch(WorkerFailure):
    """An engine's receipt contradicts what the learner published: it must not serve."""


@dataclass(frozen=True, slots=True)
class ProbeTolerance:
    """Largest allowed |log p_engine - log p_learner| over the probe's tokens, in nats."""

    largest: float
    mean: float

    @classmethod
    def for_dtype(cls, dtype: str, largest: float | None = None) -> ProbeTolerance:
        if dtype == "float32":
            bound = FLOAT32_MAX_DIFFERENCE if largest is None else largest
            return cls(largest=bound, mean=bound)
        bound = BFLOAT16_MAX_DIFFERENCE if largest is None else largest
        return cls(largest=bound, mean=min(bound, BFLOAT16_MEAN_DIFFERENCE))


def probe_difference(published: PublishedWeights, receipt: WeightReceipt) -> tuple[float, float]:
    """(largest, mean) |engine - learner| over the probe's log-probs, in nats."""
    differences = [abs(a - b) for a, b in zip(receipt.probe_logprobs, published.probe_logprobs, strict=True)]
    return max(differences), math.fsum(differences) / len(differences)


def verify_receipt(published: PublishedWeights, receipt: WeightReceipt, tolerance: ProbeTolerance) -> float:
    """Return the probe's largest difference, or raise WeightMismatch naming the worker and what differs."""
    manifest = published.manifest
    if receipt.version != manifest.version:
        raise WeightMismatch(receipt.worker, f"serves policy version {receipt.version}, the learner published {manifest.version}")
    if receipt.digest != manifest.digest:
        raise WeightMismatch(
            receipt.worker,
            f"digest of version {manifest.version} is {receipt.digest}, the learner's is {manifest.digest}: bytes "
            "changed on the way",
        )
    if receipt.num_loaded != len(manifest.names):
        raise WeightMismatch(
            receipt.worker, f"loaded {receipt.num_loaded} of {len(manifest.names)} parameters of version {manifest.version}"
        )
    if len(receipt.probe_logprobs) != len(published.probe_logprobs):
        raise WeightMismatch(
            receipt.worker,
            f"probe has {len(receipt.probe_logprobs)} log-probs, the learner's has {len(published.probe_logprobs)}",
        )
    largest, mean = probe_difference(published, receipt)
    # `not <=` instead of `>`: a NaN must fail.
    if not (largest <= tolerance.largest and mean <= tolerance.mean):
        raise WeightMismatch(
            receipt.worker,
            f"log-probs of the probe differ from the learner's by {largest:.3g} (mean {mean:.3g}) at version "
            f"{manifest.version}, allowed "
            f"{tolerance.largest:.3g} (mean {tolerance.mean:.3g}): the engine does not compute with the published weights",
        )
    return largest
