"""A run's numbers and events on disk: metrics.jsonl, TensorBoard, events.jsonl.

One line a step in metrics.jsonl, and one an evaluation: {"step", "time", "<group>/<name>": number, ...}. "step" is the
number of steps done (0 = before training), "time" seconds since 1970. The groups:

    reward/ accuracy/ response/ value/ advantage/ staleness/ rollout/   what the step's samples were (`summarise_samples`)
    policy/ critic/                                                    what the updates reported
    mismatch/                                                          engine against learner, nats: first_batch_* before the
                                                                       step's first update (`first_batch.py`),
                                                                       logprob_difference_* in it
    seconds/                                                           where the time went (`StageClock`); seconds/total is
                                                                       training time over all incarnations, the time axis
                                                                       of the learning curve
    busy/<worker>                                                      share of seconds/step in which a rollout worker had
                                                                       a request
    eval/                                                              held-out figures (`EvalReport.metrics`)
    train/value/                                                       beside eval/value/: the critic's calibration on the
                                                                       samples trained on since the evaluation before
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sppo_ray.errors import UserError
from sppo_ray.redaction import redact, redact_tree
from sppo_ray.trainer.calibration import calibration
from sppo_ray.trainer.evaluation import BEST_REWARD, is_solved
from sppo_ray.trainer.jsonlines import JsonLines, read_json_lines
from sppo_ray.types import TrainingSample

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
TENSORBOARD = "tensorboard"
_CLOCK_GROUPS = ("time", "seconds", "busy")
_CLOCK_NAMES = ("seconds", "seconds_mean", "seconds_max")


def depends_on_the_clock(name: str) -> bool:
    """Whether a metric says how long something took (or when it was): all others of a synchronous run on a CPU follow from
    its settings and its seed, bit for bit, however often it was interrupted."""
    return name.partition("/")[0] in _CLOCK_GROUPS or name.rpartition("/")[2] in _CLOCK_NAMES


class MetricsWriter:
    """Writes a run's metrics, one step at a time. `close()` it, or use it as a context manager."""

    def __init__(self, run_dir: Path, *, tensorboard: bool) -> None:
        self._lines = JsonLines(run_dir / METRICS)
        self._board = _TensorBoard(run_dir / TENSORBOARD) if tensorboard else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line and one TensorBoard point a metric.

        A NaN or an infinity is written as null and its name listed in "nonfinite": JSON has no such numbers, and a
        reader must be able to tell it from a metric that was not taken.
        """
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        row: dict[str, Any] = {"step": step, "time": time.time()} | {name: finite.get(name) for name in numbers}
        if len(finite) < len(numbers):
            row["nonfinite"] = [name for name in numbers if name not in finite]
        self._lines.append(row)
        if self._board:
            self._board.write(step, row["time"], finite)

    def truncate_after(self, step: int) -> int:
        """Forget the steps after `step`, which a resumed run takes again. Returns how many lines were dropped."""
        dropped = self._lines.keep(lambda row: row["step"] <= step)
        if self._board:
            self._board.forget_from(step + 1)
        return dropped

    def flush_durably(self) -> None:
        """Return when every line is on the disk."""
        self._lines.flush_durably()

    def close(self) -> None:
        with ExitStack() as both:  # also when one of them fails, on a full disk
            if self._board:
                both.callback(self._board.close)
            both.callback(self._lines.close)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class EventLog:
    """What happened to the run, in the order in which it happened: starts, checkpoints, syncs, failures, restarts."""

    def __init__(self, run_dir: Path) -> None:
        self._lines = JsonLines(run_dir / EVENTS)

    def write(self, kind: str, message: str, **fields: Any) -> None:
        """Append {"time", "kind", "message", **fields}, without secrets; `fields` are plain JSON values."""
        self._lines.append({"time": time.time(), "kind": kind, "message": redact(message)} | redact_tree(fields))

    def flush_durably(self) -> None:
        """Return when every line is on the disk."""
        self._lines.flush_durably()

    def close(self) -> None:
        self._lines.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl in order, also of a run that is still going."""
    return list(read_json_lines(run_dir / METRICS))


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    return list(read_json_lines(run_dir / EVENTS))


def summarise_samples(
    samples: Sequence[TrainingSample], learner_version: int, best_reward: float = BEST_REWARD
) -> dict[str, float]:
    """The step's samples in numbers. `learner_version` is the policy version that they were dispatched under for training.

    Staleness of a sample = learner_version - the version that sampled its first token. Raises ValueError for no samples.
    """
    if not samples:
        raise ValueError("summarise_samples needs at least one sample")
    scored = [sample.scored for sample in samples]
    rewards = [item.reward for item in scored]
    return (
        {"samples/count": len(samples), "reward/mean": _mean(rewards), "reward/std": statistics.pstdev(rewards)}
        | _spread("reward/seconds_", [item.reward_seconds for item in scored])
        | _accuracy(samples, best_reward)
        | _responses(samples)
        | _values(samples)
        | _advantages([_mean(sample.token_advantages) for sample in samples])
        | _staleness([learner_version - item.trajectory.policy_version for item in scored])
    )


def _accuracy(samples: Sequence[TrainingSample], best_reward: float) -> dict[str, float]:
    by_source: dict[str, list[bool]] = {}
    for sample in samples:
        by_source.setdefault(sample.scored.prompt.source, []).append(is_solved(sample.scored.reward, best_reward))
    return {f"accuracy/{source}": _mean(solved) for source, solved in sorted(by_source.items())}


def _responses(samples: Sequence[TrainingSample]) -> dict[str, float]:
    trajectories = [sample.scored.trajectory for sample in samples]
    lengths = [len(trajectory.response_ids) for trajectory in trajectories]
    return (
        {"response/tokens": sum(lengths)}
        | _spread("response/length_", lengths)
        | {"response/truncation_rate": _mean([t.finish_reason == "length" for t in trajectories])}
        | _spread("rollout/seconds_", [t.seconds for t in trajectories])
        | {"rollout/mixed_version_rate": _mean([t.policy_version != t.policy_version_end for t in trajectories])}
    )


def _values(samples: Sequence[TrainingSample]) -> dict[str, float]:
    """The critic against the outcomes that it learns, overlong shaping included; nothing without a critic."""
    pairs = [(s.scored.value.value, s.shaped_reward) for s in samples if s.scored.value is not None]
    if not pairs:
        return {}
    values, rewards = zip(*pairs, strict=True)
    spread = {"value/mean": _mean(values), "value/std": statistics.pstdev(values)}
    return spread | {f"value/{name}": figure for name, figure in calibration(values, rewards).items()}


def _advantages(advantages: Sequence[float]) -> dict[str, float]:
    return {"advantage/mean": _mean(advantages), "advantage/std": statistics.pstdev(advantages)}


def _staleness(staleness: Sequence[int]) -> dict[str, float]:
    counts = Counter(staleness)
    return _spread("staleness/", staleness) | {f"staleness/count_{age}": counts[age] for age in sorted(counts)}


def _spread(prefix: str, figures: Sequence[float]) -> dict[str, float]:
    return {f"{prefix}mean": _mean(figures), f"{prefix}max": max(figures)}


def _mean(figures: Sequence[float]) -> float:
    return math.fsum(figures) / len(figures)


def _number(name: str, value: float) -> int | float:
    """A plain Python number; NumPy's scalars and booleans become one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"metric {name} is {value!r}: a metric is a number") from None


class _TensorBoard:
    """Scalars in TensorBoard's event format, through the tensorboard package alone (neither torch nor TensorFlow)."""

    def __init__(self, directory: Path) -> None:
        try:
            # Here and not at the top: it takes half a second, and a run may do without it.
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise UserError(
                f"logging.tensorboard is on but {error.name} is not installed: pip install tensorboard, or set "
                "--logging.tensorboard=false"
            ) from None
        self._event, self._session, self._summary = event_pb2.Event, event_pb2.SessionLog, summary_pb2.Summary
        self._writer = EventFileWriter(str(directory), flush_secs=10)

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(self._event(step=step, wall_time=seconds, summary=self._summary(value=values)))
        self._writer.flush()

    def forget_from(self, step: int) -> None:
        """TensorBoard's restart mark: points at `step` and later from earlier event files are hidden."""
        mark = self._session(status=self._session.START)
        self._writer.add_event(self._event(step=step, wall_time=time.time(), session_log=mark))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
