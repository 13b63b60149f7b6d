"""Everything a run leaves behind while it trains, in one place: the loop says what happened, this writes it down.

step        metrics.jsonl + TensorBoard, trajectories/step-*.parquet, status.json, the progress display
evaluation  evaluations/step-*.json, the metrics of its step; both with the critic's calibration on held-out prompts and on
            the training samples since the evaluation before (values as they were at dispatch)
sync        weights.jsonl: digest and probe of each published version, and each engine's proof
event       events.jsonl
beat        status.json again, with the time: a sign of life (`heartbeat.py`)
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sppo_ray.config import RunConfig
from sppo_ray.data.trajectory_log import to_table, write_step
from sppo_ray.trainer.calibration import calibrate
from sppo_ray.trainer.checkpoint import TrainerState
from sppo_ray.trainer.evaluation import EvalReport
from sppo_ray.trainer.fleet_members import FleetSync, WorkerView
from sppo_ray.trainer.guardrails import Alarm, Guardrails
from sppo_ray.trainer.heartbeat import News
from sppo_ray.trainer.interfaces import PublishedWeights
from sppo_ray.trainer.metrics import EventLog, MetricsWriter, read_metrics, summarise_samples
from sppo_ray.trainer.pipeline import UnscoredTrajectory
from sppo_ray.trainer.progress import Progress, StepTimer, StepView
from sppo_ray.trainer.rundir import RunDir
from sppo_ray.trainer.timing import StageClock
from sppo_ray.trainer.weight_log import WeightLog
from sppo_ray.types import TrainingSample

_SUMS = "sums.json"


class Recorder:
    """Writes one run's records. `close()` it."""

    def __init__(self, run_dir: RunDir, config: RunConfig, progress: Progress) -> None:
        self._run_dir = run_dir
        self._config = config
        self._progress = progress
        self._metrics = MetricsWriter(run_dir.path, tensorboard=config.logging.tensorboard)
        self._events = EventLog(run_dir.path)
        self._weights = WeightLog(run_dir.path)
        self._guardrails = self._new_guardrails()
        self.raised: tuple[Alarm, ...] = ()  # by the newest step
        self._clock = StageClock()
        self._busy_seconds: dict[str, float] = {}  # of each worker, at the step before
        self._reward_errors: Counter[str] = Counter()
        self._trained_on: list[tuple[float, float]] = []  # (value, shaped reward) of the samples since the last evaluation
        self._status: dict[str, Any] = {"name": config.name, "algorithm": config.algorithm.type, "steps": config.loop.steps}
        self._status_lock = threading.Lock()  # the heartbeat writes from a thread of its own
        self.news = News()  # of a stage that began or ended
        self._timer = StepTimer()

    async def save(self, directory: Path) -> None:
        """What the next figures add up over several steps, as part of a checkpoint; the lines so far are on the disk then."""
        self._metrics.flush_durably()
        self._events.flush_durably()
        self._weights.flush_durably()
        (directory / _SUMS).write_text(json.dumps({"trained_on": self._trained_on}))

    def restore(self, directory: Path | None) -> None:
        """The inverse of `save`; None = the run begins, maybe anew."""
        self._reward_errors.clear()
        sums = {"trained_on": []} if directory is None else json.loads((directory / _SUMS).read_text())
        self._trained_on = [(value, reward) for value, reward in sums["trained_on"]]

    def begin(self, state: TrainerState) -> None:
        """The run trains from here on; what an earlier incarnation wrote after `state` is forgotten."""
        is_new = state.step == 0 and state.initial_accuracy is None
        dropped = self._metrics.truncate_after(-1 if is_new else state.step)
        for folder in (self._run_dir.trajectories, self._run_dir.evaluations):
            _drop_later_steps(folder, -1 if is_new else state.step)
        self._weights.truncate_after(-1 if is_new else state.policy_version)
        if dropped:
            self.event("resumed", f"continues after step {state.step}; {dropped} later lines of metrics.jsonl are taken again")
        self._progress.start(self._config.loop.steps, state.step)
        self._timer.start(self._config.loop.steps, state.step)
        self._clock.next_step()
        self._guardrails = self._new_guardrails()  # without the steps that are taken again
        self._guardrails.remember(read_metrics(self._run_dir.path))
        self.phase("training", state, alerts=self._alerts())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        try:
            with self._clock.stage(name):
                self.news.tell()
                yield
        finally:
            self.news.tell()

    @contextmanager
    def pause(self, state: TrainerState) -> Iterator[None]:
        """The run rests: neither the seconds of training nor the estimate of the time left count it."""
        self.event("paused", f"after step {state.step}", show=True)
        self.phase("paused", state)
        with self.stage("pause"):
            yield
        self._timer.restart_clock()
        self._progress.rested()
        self.event("pause-over", f"after step {state.step}", show=True)
        self.phase("training", state)

    def weights(self, published: PublishedWeights, proof: FleetSync) -> None:
        """A version that was published, and what the engines proved of it."""
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
        """One finished step, and its figures as written. `learner_version` is the version that its samples were trained on."""
        samples = [sample for minibatch in minibatches for sample in minibatch]
        figures = dict(summarise_samples(samples, learner_version, self._config.reward.range[1])) if samples else {}
        self._trained_on += [(s.scored.value.value, s.shaped_reward) for s in samples if s.scored.value is not None]
        figures |= metrics
        figures |= {"reward/errors": sum(self._reward_errors.values()), "policy/version": state.policy_version}
        if self._config.logging.trajectories and samples:
            with self.stage("log"):
                sizes = [len(minibatch) for minibatch in minibatches]
                write_step(self._run_dir.path, to_table(state.step, samples, learner_version, sizes))
        figures |= self._clock.next_step()
        figures |= self._busy_shares(fleet, figures["seconds/step"])
        figures |= _totals(state)
        self._look_at(state.step, figures)
        self._metrics.write(state.step, figures)
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
        shown = {name: figures[name] for name in ("reward/mean", "response/length_mean", "seconds/step") if name in figures}
        rows = [asdict(worker) for worker in fleet]
        alerts = self._alerts()
        self.phase("training", state, latest=shown, fleet=rows, eta_s=self._timer.seconds_left, alerts=alerts)
        return figures

    def _busy_shares(self, fleet: Sequence[WorkerView], seconds: float) -> dict[str, float]:
        """busy/<worker>: the share of the step's `seconds` in which the worker had a request."""
        before, self._busy_seconds = self._busy_seconds, {worker.name: worker.busy_seconds for worker in fleet}
        # A fleet that was made anew counts from 0 again, and its first step is left out.
        known = {name: total - before[name] for name, total in self._busy_seconds.items() if total >= before.get(name, math.inf)}
        return {f"busy/{name}": min(busy / seconds, 1.0) for name, busy in known.items()} if seconds > 0 else {}

    def _look_at(self, step: int, figures: dict[str, float]) -> None:
        """Let the guardrails see the figures of `step`, and add theirs."""
        before = {alarm.detector for alarm in self._guardrails.alarms}
        self.raised = self._guardrails.check(step, figures)
        figures |= self._guardrails.metrics()
        for detector in before - {alarm.detector for alarm in self._guardrails.alarms}:
            self.event("guardrail-over", f"{detector} is as usual again since step {step}", show=True)
        for alarm in self.raised:
            self._events.write("guardrail", alarm.message, detector=alarm.detector, since=alarm.since, action=alarm.action)
            self._progress.message(f"guardrail ({alarm.action}): {alarm.message}")

    def _new_guardrails(self) -> Guardrails:
        return Guardrails(self._config.guardrails, synchronous=self._config.loop.max_staleness == 0)

    def _alerts(self) -> list[dict[str, Any]]:
        return [alarm.to_dict() for alarm in self._guardrails.alarms]

    def reward_errors(self, unscored: Sequence[UnscoredTrajectory]) -> None:
        self._reward_errors.update(outcome.reason for outcome in unscored)
        for outcome in unscored:
            self._events.write(
                "reward-error", outcome.reason, prompt_id=outcome.prompt.id, request_id=outcome.trajectory.request_id
            )

    def evaluation(self, state: TrainerState, report: EvalReport) -> None:
        if not self._timer.is_timed:
            self._timer.restart_clock()
        content, figures = report.to_dict(), report.metrics()
        content |= {"train_seconds": state.seconds, "train_samples": state.samples, "train_tokens": state.response_tokens}
        if self._trained_on:
            seen = calibrate(*zip(*self._trained_on, strict=True))
            self._trained_on.clear()
            content |= {"train_critic": seen.to_dict()}
            figures |= {f"train/value/{name}": figure for name, figure in seen.figures.items()}
            figures["train/value/count"] = seen.count
        self._run_dir.write_json(f"evaluations/step-{state.step:06d}.json", content)
        self._metrics.write(state.step, figures | _totals(state))
        self._progress.evaluation(report)

    def checkpoint(self, path: Path) -> None:
        self.event("checkpoint", path.name)

    def event(self, kind: str, message: str, *, show: bool = False) -> None:
        self._events.write(kind, message)
        if show:
            self._progress.message(message)

    def message(self, text: str) -> None:
        self._progress.message(text)

    def phase(self, phase: str, state: TrainerState | None = None, **fields: Any) -> None:
        """Rewrite status.json: what the REST server and a curious user read."""
        now = time.time()
        news = {"phase": phase, "updated": now, "heartbeat": now, "stage": self._clock.current, **fields}
        if state is not None:
            news["state"] = asdict(state)
        with self._status_lock:
            self._status |= news
            self._run_dir.write_json("status.json", self._status)

    def end(self, phase: str, state: TrainerState | None = None, **fields: Any) -> None:
        """The last phase: there is nothing left to wait for."""
        self.phase(phase, state, eta_s=None, pending=[], paused=False, stopping=False, **fields)

    def live(self, **fields: Any) -> None:
        """Facts for the next beat; called from the trainer's own thread."""
        with self._status_lock:
            self._status |= {"stage": self._clock.current, **fields}

    def beat(self) -> None:
        """Rewrite status.json as a sign of life, from any thread. Raises OSError."""
        with self._status_lock:
            self._status |= {"heartbeat": time.time(), "stage": self._clock.current}
            self._run_dir.write_json("status.json", self._status, durably=False)

    def close(self) -> None:
        with ExitStack() as all_of_them:  # also when one of them fails, on a full disk
            for part in (self._events, self._metrics, self._weights, self._progress):
                all_of_them.callback(part.close)


def _totals(state: TrainerState) -> dict[str, float]:
    return {"seconds/total": state.seconds, "samples/total": state.samples, "tokens/total": state.response_tokens}


def _drop_later_steps(folder: Path, step: int) -> None:
    for path in folder.glob("step-*"):
        number = path.stem.removeprefix("step-")
        if number.isdigit() and int(number) > step:
            path.unlink()


def fleet_line(fleet: Sequence[WorkerView]) -> str:
    """ "rollout 2/2 healthy, 1 restart", with the states of those that are not."""
    healthy = sum(worker.state == "HEALTHY" for worker in fleet)
    others = Counter(worker.state.lower() for worker in fleet if worker.state != "HEALTHY")
    restarts = sum(worker.restarts for worker in fleet)
    parts = [f"rollout {healthy}/{len(fleet)} healthy", *(f"{count} {state}" for state, count in sorted(others.items()))]
    return ", ".join(parts + ([f"{restarts} restart{'s' if restarts > 1 else ''}"] if restarts else []))
