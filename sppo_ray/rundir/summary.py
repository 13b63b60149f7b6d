"""summary.json: the results of a run."""

from __future__ import annotations

import math
from typing import Any, Literal

from sppo_ray.rundir.files import FileModel, Whole
from sppo_ray.rundir.jsonlines import finite_json


class Summary(FileModel):
    """Written when a run ends; scripts rely on the names."""

    name: str = ""
    status: Literal["finished", "stopped"]
    """stopped = ended early on request, resumable."""
    algorithm: str = ""
    seed: Whole = 0
    steps: Whole
    """Done."""
    seconds: float = 0.0
    """Training time over all incarnations, without downtime."""
    samples: Whole = 0
    """Trained on."""
    response_tokens: Whole = 0
    """Generated for training: greedy baselines and dropped groups included."""
    initial_accuracy: float | None = None
    """Held-out; None = never evaluated."""
    final_accuracy: float | None = None
    best_accuracy: float | None = None
    policy_version: Whole = 0
    critic_version: Whole = 0
    reward_errors: Whole = 0
    restarts: Whole = 0
    """Restarts of workers and of the run itself."""
    peak_memory: dict[str, Whole] = {}
    """Bytes by worker, {"learner-0": ...}; the device's on a GPU, else resident."""
    advice: str | None = None
    """What bounds a step, and what would save time."""

    @property
    def tokens_per_second(self) -> float:
        return self.response_tokens / self.seconds if self.seconds > 0 else math.nan

    def to_dict(self) -> dict[str, Any]:
        return finite_json(self.model_dump() | {"tokens_per_second": self.tokens_per_second})
