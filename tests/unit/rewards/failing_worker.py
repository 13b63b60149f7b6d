"""The verifier process with a running sum that does what the answer says: `python -m
tests.unit.rewards.failing_worker`.

As one that says of itself that failing is the answer's fault. An answer of "truth" fails as its
ground truth does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sppo_ray.rewards import base, registry
from sppo_ray.rewards.pool import worker
from tests.unit.rewards.verifier_functions import by_command


def verify(response: str, ground_truth: str, extra: Mapping[str, Any]) -> tuple[float, str]:
    if ground_truth == "bad":
        raise base.BadGroundTruth("it cannot be read")
    asked = ground_truth if response == "truth" else response
    while asked == "burn":
        pass
    return float(by_command(asked, ground_truth, extra)), "correct"


def truth_alone(ground_truth: str, extra: Mapping[str, Any]) -> None:
    verify("truth", ground_truth, extra)


if __name__ == "__main__":
    registry._BUILDERS["running-sum"] = lambda settings: base.Verifier(
        "failing", verify, failure_is_wrong=True, truth_alone=truth_alone
    )
    worker.main()
