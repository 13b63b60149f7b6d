"""Writes all records of a run during training.

step        metrics.jsonl + trackers, trajectories/step-*.parquet, status.json, the progress
            display
evaluation  evaluations/step-*.json and metrics.jsonl, with the critic's calibration on held-out
            prompts and on the training samples since the previous evaluation (valued at dispatch)
stage       seconds/<stage>; calls of workers: time/<role>/<label>; both in trace.json
sync        weights.jsonl: digest and probe of each published version, and each engine's receipt
event       events.jsonl
beat        status.json with the current time, as a sign of life (`heartbeat.py`)
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sppo_ray.config import RunConfig
from sppo_ray.display.progress import Progress, StepTimer, StepView
from sppo_ray.evaluation.calibration import calibrate
from sppo_ray.evaluation.scores import EvalReport
from sppo_ray.file_digests import FileDigest, digest_folder
from sppo_ray.protocols import PublishedWeights
from sppo_ray.rollout.pipeline import UnscoredTrajectory
from sppo_ray.rollout.views import FleetSync, WorkerView
from sppo_ray.rundir.evaluations import write_evaluation
from sppo_ray.rundir.heartbeat import Wakeup
from sppo_ray.rundir.layout import RunDir, step_of
from sppo_ray.rundir.metrics import EventLog, MetricsWriter, read_metrics
from sppo_ray.rundir.status import Alert, RunStatus, write_status
from sppo_ray.rundir.trace import TraceWriter
from sppo_ray.rundir.trajectories import to_table, write_step
from sppo_ray.rundir.weights_log import WeightLog
from sppo_ray.tracking import open_trackers
from sppo_ray.trainer.checkpoint import TrainerState
from sppo_ray.trainer.guardrails import Guardrails
from sppo_ray.trainer.score_drift import ScoreDrift
from sppo_ray.trainer.step_metrics import summarise_samples
from sppo_ray.trainer.timing import StageClock
from sppo_ray.trainer.worker_times import WorkerTimes
from sppo_ray.types import TrainingSample

_SUMS = "sums.json"


class Recorder:
    """Writes the records of a run. Call `close` at the end."""

    def __init__(
        self,
        run_dir: RunDir,
        config: RunConfig,
        progress: Progress,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run_dir = run_dir
        self._config = config
        self._progress = progress
        self._metrics = MetricsWriter(run_dir.path)
        self._trackers = open_trackers(config, run_dir, progress.message)
        self._events = EventLog(run_dir.path)
        self._weights = WeightLog(run_dir.path)
        self._guardrails = self._new_guardrails()
        self._drift = ScoreDrift()
        self._watched = [f"reward/{part}" for part in config.reward.watched]
        self.raised: tuple[Alert, ...] = ()  # new alarms of the last step
        self.after_step: Callable[[Mapping[str, float]], None] | None = None
        """Called with each step's metrics by `call_back`; never raises."""
        self._clock = StageClock(clock)
        self._trace = TraceWriter(run_dir.path, clock) if config.logging.trace else None
        self.times = WorkerTimes(clock, self._trace)
        # of the event loop's thread, at the end of the previous step
        self._cpu_seconds = time.thread_time()
        self._busy_seconds: dict[str, float] = {}  # by worker, at the end of the previous step
        self._reward_errors: Counter[str] = Counter()
        # (value, shaped reward) of the samples since the last evaluation
        self._trained_on: list[tuple[float, float]] = []
        self._status = RunStatus(name=config.name, algorithm=config.algorithm.type, steps=config.loop.steps)
        self._status_lock = threading.Lock()  # the heartbeat writes from its own thread
        self.stage_changed = Wakeup()  # notified when a stage begins or ends
        self._timer = StepTimer()
        self._trajectory_writer = ThreadPoolExecutor(1, thread_name_prefix="trajectories")
        self._writing: Future[Path] | None = None  # writes the step's trajectories

    async def save(self, directory: Path) -> dict[str, FileDigest]:
        """Write the sums over several steps into a checkpoint, and flush all records to disk."""
        await asyncio.to_thread(self._wait_for_trajectories)
        self._metrics.flush_durably()
        self._events.flush_durably()
        self._weights.flush_durably()
        (directory / _SUMS).write_text(json.dumps({"trained_on": self._trained_on}))
        return digest_folder(directory)

    def restore(self, directory: Path | None) -> None:
        """Restore the sums from a checkpoint; None = start from the beginning."""
        self._reward_errors.clear()
        sums = {"trained_on": []} if directory is None else json.loads((directory / _SUMS).read_text())
        self._trained_on = [(value, reward) for value, reward in sums["trained_on"]]

    def begin(self, state: TrainerState) -> None:
        """Start or continue training at `state`, and delete the records of later steps."""
        self._wait_for_trajectories()
        is_new = state.step == 0 and state.initial_accuracy is None
        dropped = self._metrics.truncate_after(-1 if is_new else state.step)
        for tracker in self._trackers:
            tracker.forget_from(0 if is_new else state.step + 1)
        for folder in (self._run_dir.trajectories, self._run_dir.evaluations):
            _drop_later_steps(folder, -1 if is_new else state.step)
        self._weights.truncate_after(-1 if is_new else state.policy_version)
        if dropped:
            self.event(
                "resumed",
                f"continues after step {state.step}; {dropped} later lines of metrics.jsonl are repeated",
            )
        self._progress.start(self._config.loop.steps, state.step)
        self._timer.start(self._config.loop.steps, state.step)
        self._clock.next_step()
        self.times.next_step(())
        self._cpu_seconds = time.thread_time()
        self._guardrails = self._new_guardrails()  # without the steps that will be repeated
        rows = read_metrics(self._run_dir.path)
        self._drift = ScoreDrift.since_the_first_of(rows)
        self._guardrails.remember(rows)
        self.phase("training", state, alerts=self._guardrails.alarms)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        try:
            traced = nullcontext() if self._trace is None else self._trace.span("driver", name)
            with traced, self._clock.stage(name):
                self.stage_changed.notify()
                yield
        finally:
            self.stage_changed.notify()

    @contextmanager
    def pause(self, state: TrainerState) -> Iterator[None]:
        """Record a pause. It does not count in training seconds and in the estimated time left."""
        self.event("paused", f"after step {state.step}", show=True)
        self.phase("paused", state)
        with self.stage("pause"):
            yield
        self._timer.restart_clock()
        self._progress.rested()
        self.event("pause-over", f"after step {state.step}", show=True)
        self.phase("training", state)

    def weights(self, published: PublishedWeights, proof: FleetSync) -> None:
        """Record a published version with the engines' receipts."""
        self._weights.write(published, proof.receipts, loop_steps=self._config.loop.steps)

    def step(
        self,
        state: TrainerState,
        minibatches: Sequence[Sequence[TrainingSample]],
        metrics: Mapping[str, float],
        *,
        learner_version: int,
        fleet: Sequence[WorkerView],
    ) -> Mapping[str, float]:
        """Record a finished step and return its metrics. `learner_version` is the policy version
        before the step's first update.
        """
        samples = [sample for minibatch in minibatches for sample in minibatch]
        figures = (
            dict(summarise_samples(samples, learner_version, self._config.reward_range[1])) if samples else {}
        )
        self._trained_on += [
            (s.scored.value.value, s.shaped_reward) for s in samples if s.scored.value is not None
        ]
        figures |= self._drift.of(figures)
        seen = [figures[name] for name in self._watched if name in figures]
        figures |= {"reward/watched": math.fsum(seen) / len(seen)} if seen else {}
        figures |= metrics
        figures |= {
            "reward/errors": sum(self._reward_errors.values()),
            "policy/version": state.policy_version,
        }
        with self.stage("log"):  # so that the samples exist before the step's metrics
            self._wait_for_trajectories()
        figures |= self._clock.next_step()
        figures |= self._times_of(fleet, figures["seconds/step"])
        figures |= self._busy_shares(fleet, figures["seconds/step"])
        figures |= _totals(state)
        self._look_at(state.step, figures)
        self._write_metrics(state.step, figures)
        budget = self._config.loop.budget_s
        budget_left = None if budget is None else budget - state.seconds
        self._timer.tick(state.step, budget_left)
        if samples:
            view = StepView.of(
                state.step,
                figures,
                policy_version=state.policy_version,
                fleet=fleet_line(fleet),
                budget_left=budget_left,
            )
            self._progress.step(view)
        self._reward_errors.clear()
        shown = {
            name: figures[name]
            for name in ("reward/mean", "response/length_mean", "seconds/step")
            if name in figures
        }
        self.phase(
            "training",
            state,
            latest=shown,
            fleet=fleet,
            eta_s=self._timer.seconds_left,
            alerts=self._guardrails.alarms,
        )
        return figures

    async def call_back(self, step: int, figures: Mapping[str, float]) -> None:
        """Call `after_step` with the row of metrics.jsonl, in a thread: the workers are watched
        meanwhile.
        """
        if self.after_step is not None:
            await asyncio.to_thread(self.after_step, {"step": step, **figures})

    def trajectories(
        self, step: int, minibatches: Sequence[Sequence[TrainingSample]], *, learner_version: int
    ) -> None:
        """Start writing a step's samples in a thread, concurrently with the weight sync. `step`
        waits for it.
        """
        samples = [sample for minibatch in minibatches for sample in minibatch]
        sizes = [len(minibatch) for minibatch in minibatches]
        if self._config.logging.trajectories and samples:
            self._wait_for_trajectories()
            self._writing = self._trajectory_writer.submit(
                lambda: write_step(self._run_dir.path, to_table(step, samples, learner_version, sizes))
            )

    def _wait_for_trajectories(self) -> None:
        """Wait until the step's trajectories are written. Raises the error of the writer."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _times_of(self, fleet: Sequence[WorkerView], seconds: float) -> dict[str, float]:
        """time/<role>/<label>: what the workers of each role did in the step, as shares of its
        `seconds`. The driver works while its thread computes.
        """
        before, self._cpu_seconds = self._cpu_seconds, time.thread_time()
        share = min((self._cpu_seconds - before) / seconds, 1.0) if seconds > 0 else 0.0
        engines = [worker.name for worker in fleet if worker.state not in ("PENDING", "RETIRED")]
        driver = {"time/driver/driver": share, "time/driver/wait": 1.0 - share}
        return driver | self.times.next_step(engines)

    def _busy_shares(self, fleet: Sequence[WorkerView], seconds: float) -> dict[str, float]:
        """Return busy/<worker>: the share of the step's `seconds` with requests in flight."""
        before, self._busy_seconds = (
            self._busy_seconds,
            {worker.name: worker.busy_seconds for worker in fleet},
        )
        # A new fleet counts from 0, so its first step is left out.
        known = {
            name: total - before[name]
            for name, total in self._busy_seconds.items()
            if total >= before.get(name, math.inf)
        }
        return (
            {f"busy/{name}": min(busy / seconds, 1.0) for name, busy in known.items()} if seconds > 0 else {}
        )

    def _look_at(self, step: int, figures: dict[str, float]) -> None:
        """Check the metrics of `step` with the guardrails and add the guardrails' metrics."""
        before = {alarm.detector for alarm in self._guardrails.alarms}
        self.raised = self._guardrails.check(step, figures)
        figures |= self._guardrails.metrics()
        for detector in before - {alarm.detector for alarm in self._guardrails.alarms}:
            self.event("guardrail-over", f"{detector} is normal again since step {step}", show=True)
        for alarm in self.raised:
            self._events.write(
                "guardrail", alarm.message, detector=alarm.detector, since=alarm.since, action=alarm.action
            )
            self._progress.message(f"guardrail ({alarm.action}): {alarm.message}")

    def _new_guardrails(self) -> Guardrails:
        return Guardrails(self._config.guardrails, synchronous=self._config.loop.max_staleness == 0)

    def reward_errors(self, unscored: Sequence[UnscoredTrajectory]) -> None:
        self._reward_errors.update(outcome.reason for outcome in unscored)
        for outcome in unscored:
            self._events.write(
                "reward-error",
                outcome.reason,
                prompt_id=outcome.prompt.id,
                request_id=str(outcome.trajectory.request_id),
            )

    def evaluation(self, state: TrainerState, report: EvalReport) -> None:
        if not self._timer.is_timed:
            self._timer.restart_clock()
        content, figures = report.to_dict(), report.metrics()
        content |= {
            "train_seconds": state.seconds,
            "train_samples": state.samples,
            "train_tokens": state.response_tokens,
        }
        if self._trained_on:
            seen = calibrate(*zip(*self._trained_on, strict=True))
            self._trained_on.clear()
            content |= {"train_critic": seen.to_dict()}
            figures |= {f"train/value/{name}": figure for name, figure in seen.figures.items()}
            figures["train/value/count"] = seen.count
        write_evaluation(self._run_dir, state.step, content)
        self._write_metrics(state.step, figures | _totals(state))
        self._progress.evaluation(report)

    def _write_metrics(self, step: int, figures: Mapping[str, float]) -> None:
        finite = self._metrics.write(step, figures)
        for tracker in self._trackers:
            tracker.write(step, finite)

    def checkpoint(self, path: Path) -> None:
        self.event("checkpoint", path.name)

    def event(self, kind: str, message: str, *, show: bool = False) -> None:
        self._events.write(kind, message)
        if show:
            self._progress.message(message)

    def message(self, text: str) -> None:
        self._progress.message(text)

    def phase(self, phase: str, state: TrainerState | None = None, **fields: Any) -> None:
        """Rewrite status.json with a new phase."""
        now = time.time()
        if state is not None:
            fields["state"] = state
        with self._status_lock:
            self._status = self._status.but(
                phase=phase, updated=now, heartbeat=now, stage=self._clock.current, **fields
            )
            write_status(self._run_dir, self._status)

    def end(self, phase: str, state: TrainerState | None = None, **fields: Any) -> None:
        """Rewrite status.json with the last phase."""
        self.phase(phase, state, eta_s=None, pending=[], paused=False, stopping=False, **fields)

    def live(self, **fields: Any) -> None:
        """Set fields that the next beat writes. Called from the trainer's thread."""
        with self._status_lock:
            self._status = self._status.but(stage=self._clock.current, **fields)

    def beat(self) -> None:
        """Rewrite status.json as a sign of life, from any thread. Raises OSError."""
        with self._status_lock:
            self._status = self._status.but(heartbeat=time.time(), stage=self._clock.current)
            write_status(self._run_dir, self._status, durably=False)

    def close(self) -> None:
        with ExitStack() as stack:  # closes all parts, even if one fails on a full disk
            stack.callback(self._trajectory_writer.shutdown)
            stack.callback(self._wait_for_trajectories)
            traces = [] if self._trace is None else [self._trace]
            parts = (self._events, *self._trackers, self._metrics, self._weights, self._progress, *traces)
            for part in parts:
                stack.callback(part.close)


def _totals(state: TrainerState) -> dict[str, float]:
    return {
        "seconds/total": state.seconds,
        "samples/total": state.samples,
        "tokens/total": state.response_tokens,
    }


def _drop_later_steps(folder: Path, step: int) -> None:
    for path in folder.glob("step-*"):
        number = step_of(path.name, path.suffix)
        if number is not None and number > step:
            path.unlink()


def fleet_line(fleet: Sequence[WorkerView]) -> str:
    """Format the fleet: "rollout 2/2 healthy, 1 restart", with the states of other workers."""
    healthy = sum(worker.state == "HEALTHY" for worker in fleet)
    others = Counter(worker.state.lower() for worker in fleet if worker.state != "HEALTHY")
    restarts = sum(worker.restarts for worker in fleet)
    parts = [
        f"rollout {healthy}/{len(fleet)} healthy",
        *(f"{count} {state}" for state, count in sorted(others.items())),
    ]
    return ", ".join(parts + ([f"{restarts} restart{'s' if restarts > 1 else ''}"] if restarts else []))
