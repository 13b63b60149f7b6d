"""Read a run's records for a replay. Nothing here writes.

config.yaml, metrics.jsonl, weights.jsonl, trajectories/step-*.parquet
    --> RecordedStep, of the target and of those before it
checkpoints/step-*
    --> Start, the newest one that is early enough
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sppo_ray.errors import UserError
from sppo_ray.rundir.metrics import is_training_step, read_metrics
from sppo_ray.rundir.trajectories import read_step, steps, to_minibatches
from sppo_ray.rundir.weights_log import read_weights
from sppo_ray.trainer.checkpoint import CheckpointCorrupt, TrainerState, checkpoint_path, verify_checkpoint
from sppo_ray.types import TrainingSample


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """Step number `step`, counted from 1; it made policy version `step` from version `step` - 1."""

    step: int
    # as trained; () for a step without samples
    minibatches: tuple[tuple[TrainingSample, ...], ...]
    metrics: Mapping[str, float | None]  # None = not finite

    @property
    def samples(self) -> list[TrainingSample]:
        return [sample for minibatch in self.minibatches for sample in minibatch]


@dataclass(frozen=True, slots=True)
class Start:
    """The start of a replay: a checkpoint, or with path None the run's starting weights."""

    path: Path | None
    state: TrainerState

    @property
    def name(self) -> str:
        return self.path.name if self.path is not None else "the starting weights"


class Records:
    """The records of one run directory, which may still be written. Raises UserError when they are
    damaged.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir
        try:
            self._metrics = {row["step"]: row for row in read_metrics(run_dir) if is_training_step(row)}
            self.weights = read_weights(run_dir)
        except (ValueError, KeyError) as error:
            raise UserError(f"run {run_dir}: its records cannot be read ({error})") from None

    def target(self, step: int) -> RecordedStep:
        """Read the step to replay. Raises UserError when its records are missing or incomplete."""
        there = steps(self.path)
        if not there:
            raise UserError(
                f"run {self.path} recorded no samples (logging.trajectories): there is nothing to replay"
            )
        if step not in there:
            raise UserError(
                f"step {step} of run {self.path} has no bundle: recorded are {there[0]} to {there[-1]}"
            )
        return self.step(step)

    def step(self, step: int) -> RecordedStep:
        """Read an earlier step that the replay repeats. Raises UserError when its samples are
        missing.
        """
        metrics = self._metrics.get(step)
        if metrics is None:
            raise UserError(
                f"run {self.path}: metrics.jsonl has no line of step {step}, which the replay needs"
            )
        before = self._metrics.get(step - 1, {"samples/total": 0 if step == 1 else None})
        if metrics["samples/total"] == before["samples/total"]:
            return RecordedStep(step, (), metrics)
        try:
            minibatches = to_minibatches(read_step(self.path, step))
        except UserError as error:
            raise UserError(f"step {step} cannot be replayed: {error}") from None
        return RecordedStep(step, tuple(tuple(minibatch) for minibatch in minibatches), metrics)

    def loop_steps(self, first: int, last: int) -> set[int]:
        """Return the run's length in steps when versions `first` to `last` were made, as far as
        known.
        """
        return {
            self.weights[version].loop_steps for version in range(first, last + 1) if version in self.weights
        }


def starting_point(checkpoints: Path, target: RecordedStep, on_skip: Callable[[str], None]) -> Start:
    """Return the newest whole checkpoint that is older than the policy and critic versions of the
    target's samples. `on_skip` is called for each damaged checkpoint; the run's files do not
    change.
    """
    policy_version = min(sample.scored.trajectory.policy_version for sample in target.samples)
    values = [sample.scored.value for sample in target.samples]
    critic_version = min((value.critic_version for value in values if value is not None), default=None)
    for step in range(min(policy_version, target.step - 1), 0, -1):
        path = checkpoint_path(checkpoints, step)
        if not path.is_dir():
            continue
        try:
            state = verify_checkpoint(path)
        except CheckpointCorrupt as error:
            on_skip(f"{error}: the replay starts from an earlier one")
            continue
        if critic_version is None or state.critic_version <= critic_version:
            return Start(path, state)
    return Start(None, TrainerState.initial())
