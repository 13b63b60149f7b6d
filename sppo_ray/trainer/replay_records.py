"""What a run wrote down of its steps, as a replay reads it. Nothing here writes.

config.yaml, metrics.jsonl, weights.jsonl, trajectories/step-*.parquet --> RecordedStep, of the target and of those before it
checkpoints/step-*                                                      --> Start, the newest one that is early enough
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sppo_ray.data.trajectory_log import read_step, steps, to_minibatches
from sppo_ray.errors import UserError
from sppo_ray.trainer.checkpoint import CheckpointCorrupt, TrainerState, checkpoint_path, verify_checkpoint
from sppo_ray.trainer.metrics import read_metrics
from sppo_ray.trainer.weight_log import read_weights
from sppo_ray.types import TrainingSample


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """Step number `step`, counted from 1: it made policy version `step` of version `step` - 1."""

    step: int
    minibatches: tuple[tuple[TrainingSample, ...], ...]  # as they were trained on; () for a step that found nothing to train on
    metrics: Mapping[str, float | None]  # None = was not finite

    @property
    def samples(self) -> list[TrainingSample]:
        return [sample for minibatch in self.minibatches for sample in minibatch]


@dataclass(frozen=True, slots=True)
class Start:
    """Where a replay begins: a checkpoint, or with path None the weights that the run started from."""

    path: Path | None
    state: TrainerState

    @property
    def name(self) -> str:
        return self.path.name if self.path is not None else "the starting weights"


class Records:
    """The records of one run directory, also of a run that is still going. Raises UserError where they are damaged."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir
        try:
            self._metrics = {row["step"]: row for row in read_metrics(run_dir) if "policy/version" in row}  # no evaluations
            self.weights = read_weights(run_dir)
        except (ValueError, KeyError) as error:
            raise UserError(f"run {run_dir}: its records cannot be read ({error})") from None

    def target(self, step: int) -> RecordedStep:
        """The step to replay. Raises UserError when nothing, or too little, was recorded of it."""
        there = steps(self.path)
        if not there:
            raise UserError(f"run {self.path} recorded no samples (logging.trajectories): there is nothing to replay")
        if step not in there:
            raise UserError(f"step {step} of run {self.path} has no bundle: recorded are {there[0]} to {there[-1]}")
        return self.step(step)

    def step(self, step: int) -> RecordedStep:
        """A step that the replay passes. Raises UserError when it trained on samples that are not there."""
        metrics = self._metrics.get(step)
        if metrics is None:
            raise UserError(f"run {self.path}: metrics.jsonl has no line of step {step}, which the replay needs")
        before = self._metrics.get(step - 1, {"samples/total": 0 if step == 1 else None})
        if metrics["samples/total"] == before["samples/total"]:
            return RecordedStep(step, (), metrics)
        try:
            minibatches = to_minibatches(read_step(self.path, step))
        except UserError as error:
            raise UserError(f"step {step} cannot be replayed: {error}") from None
        return RecordedStep(step, tuple(tuple(minibatch) for minibatch in minibatches), metrics)

    def loop_steps(self, first: int, last: int) -> set[int]:
        """The lengths of the run under which versions `first` to `last` were made, as far as they are known."""
        return {self.weights[version].loop_steps for version in range(first, last + 1) if version in self.weights}


def starting_point(checkpoints: Path, target: RecordedStep, on_skip: Callable[[str], None]) -> Start:
    """The newest whole checkpoint from before anything that the target's samples saw: their policy's and their critic's version.

    `on_skip` hears of each checkpoint that is damaged; the run's files stay as they are.
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
