"""What bounds a step, and what would save time: one line from the labelled seconds.

The loop waits for one thing at a time, so its stages tell what a step consists of. One worker more
than n does the work of its role in n / (n + 1) of the time. That shortens a synchronous step by its
part of what the loop waits for. With `loop.max_staleness` engines and learner work at the same
time, so that the gain ends where the other side is never idle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAST = 0.05
"""A smaller saving is not worth a worker."""
LATEST = 20
"""Steps that the advice is about."""
_BESIDE = ("pause", "evaluate", "checkpoint")  # stages that are not part of what bounds a step
_TRAINING = ("update", "first-batch", "old-logprobs", "reference")
_CRITIC = ("critic-wait", "values", "curriculum")


@dataclass(frozen=True, slots=True)
class Advice:
    """`saving` is a share of the step."""

    bottleneck: str
    saving: float
    text: str


def advice_of(
    rows: Sequence[Mapping[str, Any]], *, learner_ranks: int, critic_ranks: int, is_overlapped: bool
) -> Advice | None:
    """Advice on the newest training steps, rows of metrics.jsonl; None when they have no times. The
    first step warms up and does not count unless it is alone.
    """
    counted = [row for row in rows if "time/driver/wait" in row]
    counted = (counted[1:] or counted)[-LATEST:]
    wall = _mean(counted, "seconds/step") - _mean(counted, *(f"seconds/{name}" for name in _BESIDE))
    if wall <= 0:
        return None

    def waited(*stages: str) -> float:
        return _mean(counted, *(f"seconds/{stage}" for stage in stages)) / wall

    in_step = _mean(counted, "seconds/step") / wall
    generating = in_step * _mean(counted, "time/rollout/generate")
    for_generation, training = waited("generate-wait"), waited(*_TRAINING)
    workers = max(1, round(_mean(counted, "sync/workers")))
    rollout, rank = for_generation / (workers + 1), training / (learner_ranks + 1)
    if is_overlapped:
        rollout = min(for_generation, generating / (workers + 1))
        rank = min(rank, in_step * _mean(counted, "time/rollout/wait"))
    if in_step * _mean(counted, "time/reward/reward") > generating:
        verifier, rollout = max(0.0, for_generation - generating) / 2, 0.0
    else:
        verifier = 0.0
    candidates = {
        "generation": (rollout, "one more rollout worker on hardware of its own"),
        "training": (rank, "one more learner rank on hardware of its own"),
        "the critic": (waited(*_CRITIC) / (critic_ranks + 1), "one more critic rank on hardware of its own"),
        "the verifier": (verifier, "twice the reward.processes"),
        "the weight sync": (waited("sync") / 2, "twice the samples a step"),
        "the driver": (waited("other", "log") / 2, "a core twice as fast for the driver"),
    }
    bottleneck, (saving, change) = max(candidates.items(), key=lambda candidate: candidate[1][0])
    if saving < LEAST:
        return Advice("nothing", saving, f"balanced: even {change} would save {saving:.0%} of the time")
    text = f"{bottleneck} is the bottleneck: {change} would save about {saving:.0%} of the time"
    return Advice(bottleneck, saving, text)


def _mean(rows: Sequence[Mapping[str, Any]], *names: str) -> float:
    """Of the sum of the metrics; a missing one is 0."""
    return sum(row.get(name) or 0.0 for row in rows for name in names) / max(1, len(rows))
