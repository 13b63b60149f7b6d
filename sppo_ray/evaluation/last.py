"""Read the critic's calibration at a run's last evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sppo_ray.evaluation.calibration import HELD_OUT, NOT_VALUED, TRAINED_ON, CalibrationReport
from sppo_ray.rundir.evaluations import read_evaluations


@dataclass(frozen=True, slots=True)
class LastEvaluation:
    """The critic's calibration at a run's last evaluation."""

    step: int
    k: int  # responses per held-out prompt; a training sample is one response
    held_out: CalibrationReport
    # of the samples trained on since the previous evaluation; NOT_VALUED without any
    trained_on: CalibrationReport

    @property
    def reports(self) -> dict[str, CalibrationReport]:
        return {HELD_OUT: self.held_out, TRAINED_ON: self.trained_on}


def last_evaluation(run_dir: Path) -> LastEvaluation | None:
    """Return the run's last evaluation with values of a critic; None when there is none."""
    for content in reversed(read_evaluations(run_dir)):
        if content.get("critic_bins"):
            count = sum(row["count"] for row in content["critic_bins"])
            held_out = {"count": count, "figures": content["critic"], "bins": content["critic_bins"]}
            seen = content.get("train_critic", NOT_VALUED.to_dict())
            return LastEvaluation(
                content["step"],
                content["k"],
                CalibrationReport.from_dict(held_out),
                CalibrationReport.from_dict(seen),
            )
    return None
