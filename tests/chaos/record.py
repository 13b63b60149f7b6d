"""What a run's files prove: each sample of each step once, from an allowed version, and the same as
in an undisturbed run.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_ray.rundir.trajectories import read_step, steps
from sppo_ray.rundir.weights_log import read_weights

COLUMNS = [
    "request_id",
    "prompt_id",
    "response_ids",
    "reward",
    "value",
    "advantage",
    "policy_version",
    "policy_version_end",
]


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts over the samples of `steps` steps. A sample that the verifier gave up on is lost: no
    update saw it.
    """

    steps: int = 0
    lost: int = 0
    repeated: int = 0
    wrong_version: int = 0

    @property
    def is_clean(self) -> bool:
        return self.steps > 0 and not (self.lost or self.repeated or self.wrong_version)

    def __add__(self, other: Audit) -> Audit:
        return Audit(
            self.steps + other.steps,
            self.lost + other.lost,
            self.repeated + other.repeated,
            self.wrong_version + other.wrong_version,
        )


def audit(
    run_dir: Path, numbers: Iterable[int], *, prompts: int, samples_per_prompt: int, staleness: int
) -> Audit:
    """Of the steps `numbers` (from 1 on)."""
    whole = Audit()
    for number in numbers:
        rows = read_step(run_dir, number, COLUMNS).to_pylist() if number in steps(run_dir) else []
        whole += audit_step(
            rows, number, prompts=prompts, samples_per_prompt=samples_per_prompt, staleness=staleness
        )
    return whole


def audit_step(
    rows: list[Mapping[str, Any]], number: int, *, prompts: int, samples_per_prompt: int, staleness: int
) -> Audit:
    """Of step `number`, whose samples were asked for as "step-<number - 1>/<prompt>/<sample>" and
    trained on at version number - 1.
    """
    version = number - 1
    asked = {
        f"step-{version}/{prompt}/{sample}"
        for prompt in range(prompts)
        for sample in range(samples_per_prompt)
    }
    seen = Counter(row["request_id"] for row in rows)
    foreign = sum(count for name, count in seen.items() if name not in asked)
    twice = sum(count - 1 for name, count in seen.items() if name in asked)
    wrong = sum(
        not version - staleness <= row["policy_version"] <= row["policy_version_end"] <= version
        for row in rows
    )
    return Audit(1, lost=len(asked - seen.keys()), repeated=twice + foreign, wrong_version=wrong)


def sample_digest(run_dir: Path, number: int) -> str:
    """SHA-256 of all that step `number` trained on, in the order of its requests; not of when and
    where it was made.
    """
    rows = sorted(read_step(run_dir, number, COLUMNS).to_pylist(), key=lambda row: row["request_id"])
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def first_difference(run_dir: Path, reference: Path) -> tuple[int, str | None]:
    """(steps compared, what differs first between a synchronous run and an undisturbed one: samples
    of a step or weights of a version; None when all of it is equal, to the bit).
    """
    common = sorted(set(steps(run_dir)) & set(steps(reference)))
    mine, theirs = read_weights(run_dir), read_weights(reference)
    for number in common:
        if sample_digest(run_dir, number) != sample_digest(reference, number):
            return number, f"samples of step {number}"
        if number in mine and number in theirs and mine[number].digest != theirs[number].digest:
            return number, f"weights of version {number}"
    return len(common), None
