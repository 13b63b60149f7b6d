"""Verifies a weight sync, independently of the transport.

    learner --publish--> [manifest, handle, probe] --pull--> every engine --receipt--> verify
        --> engines get requests

An engine gets requests only after its receipt is verified. The receipt must name the published
version and the learner's digest, all parameters must be loaded, and the engine's log-probs of the
probe sequence must equal the learner's. The probe runs the engine's real kernels. So it also
detects weights that were loaded but not repacked, a stale KV cache and a skipped layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sppo_ray.protocols import PublishedWeights, WeightReceipt, WorkerFailure

FLOAT32_MAX_DIFFERENCE = 1e-3
BFLOAT16_MAX_DIFFERENCE = 1.0
BFLOAT16_MEAN_DIFFERENCE = 0.2


class WeightMismatch(WorkerFailure):
    """An engine's receipt differs from the published version. The engine must not serve."""


@dataclass(frozen=True, slots=True)
class ProbeTolerance:
    """Allowed |log p_engine - log p_learner| of the probe's tokens, in nats: maximum and mean."""

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
    """Return maximum and mean of |engine - learner| over the probe's log-probs, in nats."""
    differences = [abs(a - b) for a, b in zip(receipt.probe_logprobs, published.probe_logprobs, strict=True)]
    return max(differences), math.fsum(differences) / len(differences)


def verify_receipt(published: PublishedWeights, receipt: WeightReceipt, tolerance: ProbeTolerance) -> float:
    """Return the probe's largest difference. Raises WeightMismatch naming the worker and the
    difference.
    """
    manifest = published.manifest
    if receipt.version != manifest.version:
        raise WeightMismatch(
            receipt.worker,
            f"serves policy version {receipt.version}, the learner published {manifest.version}",
        )
    if receipt.digest != manifest.digest:
        raise WeightMismatch(
            receipt.worker,
            f"digest of version {manifest.version} is {receipt.digest}, the learner's is {manifest.digest}: "
            "bytes "
            "changed on the way",
        )
    if receipt.num_loaded != len(manifest.names):
        raise WeightMismatch(
            receipt.worker,
            f"loaded {receipt.num_loaded} of {len(manifest.names)} parameters of version {manifest.version}",
        )
    if len(receipt.probe_logprobs) != len(published.probe_logprobs):
        raise WeightMismatch(
            receipt.worker,
            f"probe has {len(receipt.probe_logprobs)} log-probs, the learner's has "
            f"{len(published.probe_logprobs)}",
        )
    largest, mean = probe_difference(published, receipt)
    # `not <=` instead of `>`, so that NaN fails
    if not (largest <= tolerance.largest and mean <= tolerance.mean):
        raise WeightMismatch(
            receipt.worker,
            f"log-probs of the probe differ from the learner's by {largest:.3g} (mean {mean:.3g}) at version "
            f"{manifest.version}, allowed "
            f"{tolerance.largest:.3g} (mean {tolerance.mean:.3g}): the engine does not compute with the "
            "published weights",
        )
    return largest
