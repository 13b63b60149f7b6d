"""Verification of receipts. Real engines are in tests/ray/test_weight_transfer.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sppo_ray.protocols import PublishedWeights, WeightManifest, WeightReceipt
from sppo_ray.rollout.weight_sync import ProbeTolerance, WeightMismatch, probe_difference, verify_receipt

MANIFEST = WeightManifest(5, ("a", "b"), ((2, 2), (3,)), (0, 16), "float32", 28, "abc")
PUBLISHED = PublishedWeights(MANIFEST, None, (1, 2, 3), (-1.0, -2.0))
HONEST = WeightReceipt("rollout-1", 5, "abc", 2, (-1.0, -2.0), 0.1)
FLOAT32 = ProbeTolerance.for_dtype("float32")
BFLOAT16 = ProbeTolerance.for_dtype("bfloat16")


def test_an_honest_receipt_passes_and_tells_its_difference() -> None:
    assert verify_receipt(PUBLISHED, HONEST, FLOAT32) == 0.0
    # |-1.0005 + 1| = 0.0005 and |-2 + 2| = 0: largest 5e-4, mean 2.5e-4, both within 1e-3
    near = replace(HONEST, probe_logprobs=(-1.0005, -2.0))
    assert probe_difference(PUBLISHED, near) == pytest.approx((5e-4, 2.5e-4))
    assert verify_receipt(PUBLISHED, near, FLOAT32) == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"version": 4}, "serves policy version 4, the learner published 5"),
        ({"digest": "abd"}, "bytes changed on the way"),
        ({"num_loaded": 1}, "loaded 1 of 2 parameters"),
        ({"probe_logprobs": (-1.0,)}, "probe has 1 log-probs"),
        ({"probe_logprobs": (-1.0, -2.01)}, "does not compute with the published weights"),
        ({"probe_logprobs": (-1.0, float("nan"))}, "does not compute with the published weights"),
    ],
)
def test_each_wrong_receipt_is_detected_and_names_the_worker(lie: dict, message: str) -> None:
    with pytest.raises(WeightMismatch, match=message) as caught:
        verify_receipt(PUBLISHED, replace(HONEST, **lie), FLOAT32)
    assert caught.value.worker == "rollout-1"


def test_bfloat16_allows_noise_but_not_a_shift() -> None:
    # One token off by 0.3 (mean 0.15) is what bfloat16 kernels do; both off by 0.3 (mean 0.3) is
    # another model.
    assert verify_receipt(PUBLISHED, replace(HONEST, probe_logprobs=(-1.3, -2.0)), BFLOAT16) == pytest.approx(
        0.3
    )
    with pytest.raises(WeightMismatch, match="mean 0.3"):
        verify_receipt(PUBLISHED, replace(HONEST, probe_logprobs=(-1.3, -2.3)), BFLOAT16)


def test_a_tighter_bound_of_the_user_holds_for_the_mean_too() -> None:
    assert ProbeTolerance.for_dtype("bfloat16", 0.1) == ProbeTolerance(largest=0.1, mean=0.1)
