"""Runs the training and restarts it after the loss of a worker, inside one driver process.

    newest whole checkpoint --> manager.start --> restore --> push weights --> train ... export --> Ended
            ^                                                                    | WorkerFailure
            '---- wait 1, 2, 4, ... s <-- records of later steps are dropped <-- manager.reset

`Trainer.run` starts with a verified sync, so no request is dispatched before the engines serve the
restored version. A run without a checkpoint starts from the beginning with the same seed, so its
result equals that of an undisturbed run.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sppo_ray.config import RunConfig
from sppo_ray.launch.restarts import Recovery
from sppo_ray.launch.worker_manager import WorkerManager
from sppo_ray.protocols import PromptSource, WorkerDied, WorkerFailure
from sppo_ray.rollout.tasks import end_tasks
from sppo_ray.rundir.disk import full_disk_named
from sppo_ray.rundir.layout import RunDir
from sppo_ray.trainer.checkpoint import TrainerState, resumable_settings
from sppo_ray.trainer.loop import Trainer, Workers
from sppo_ray.trainer.pause import PauseGate
from sppo_ray.trainer.phases import Phase
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.tracker_state import new_tracker

T = TypeVar("T")
# a checkpoint to continue from, or None for a new run
StartingPoint = tuple[Path, TrainerState] | None
Find = Callable[[Callable[[str], None]], StartingPoint]  # calls its argument for each broken checkpoint


@dataclass(frozen=True, slots=True)
class Ended:
    """Result of the training, with everything written except the summary."""

    state: TrainerState
    memory: Mapping[str, int]  # peak bytes by worker
    stopped: bool  # on request, before the last step


class RecoveryLoop:
    """Trains until the run is over, is stopped, or has used up its restarts."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: RunDir,
        recorder: Recorder,
        prompts: PromptSource,
        *,
        manager: WorkerManager,
        gate: PauseGate,
        find: Find,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._recorder = recorder
        self._prompts = prompts
        self._manager = manager
        self._gate = gate
        self._find = find
        self._recovery = Recovery(config.recovery)
        self._state = TrainerState.initial()  # last known
        self._earlier_restarts = 0  # from earlier processes of this run
        # before the first successful start, an error would only repeat
        self._may_heal = False

    async def run(self, start: StartingPoint) -> Ended:
        """Train until the end. Raises WorkerFailure naming the worker when the restarts are used
        up, and any error that a restart cannot fix.
        """
        if start is not None:
            self._earlier_restarts = start[1].restarted().restarts
        self._state = self._counted(start)
        while True:
            try:
                return await self._live(start)
            except WorkerFailure as failure:
                delay = self._delay_after(failure)
                start = await self._back_to_checkpoint(failure)
                if not await self._unless_stopped(asyncio.sleep(delay, True)):
                    return self._stopped()

    async def _live(self, start: StartingPoint) -> Ended:
        self._recorder.phase("starting actors" if not self._recovery.total else "restoring", self._state)
        began = time.perf_counter()
        workers = await self._unless_stopped(self._manager.start())
        if workers is None:
            return self._stopped()
        self._may_heal = True
        self._recorder.event("started", f"all actors up after {time.perf_counter() - began:.1f} s", show=True)
        return await self._unless_lost(self._train(workers, start))

    async def _train(self, workers: Workers, start: StartingPoint) -> Ended:
        await self._restore(workers, start)
        trainer = Trainer(
            self._config,
            workers,
            self._prompts,
            self._recorder,
            state=self._state,
            checkpoints=self._run_dir.checkpoints,
            settings=resumable_settings(self._config),
            gate=self._gate,
            tracker=new_tracker(self._config, None if start is None else start[0]),
        )
        self._recorder.begin(self._state)
        try:
            state = await trainer.run()
        finally:
            self._state = trainer.state
        self._recorder.phase("finishing", state)
        # before the export, which uses more memory than training
        memory = await peak_memory(workers)
        if self._config.checkpoint.export and not trainer.stopped_early:
            await self._export(workers)
        return Ended(state, memory, trainer.stopped_early)

    async def _restore(self, workers: Workers, start: StartingPoint) -> None:
        """Load the checkpoint into learner and critic, and set `_state`."""
        self._state = self._counted(start)
        if start is None:
            self._recorder.restore(None)
            return
        path, state = start
        self._recorder.restore(path / "records")
        await workers.turns.enter(Phase.POLICY)
        await workers.learner.load(path / "learner")
        if workers.critic is not None:
            await workers.turns.enter(Phase.CRITIC)
            await workers.critic.load(path / "critic")
            workers.critic.restore_version(state.critic_version)
        self._recorder.event("restored", f"from {path.name}", show=True)

    def _counted(self, start: StartingPoint) -> TrainerState:
        """Return the state of a starting point, including all restarts until now."""
        restarts = self._earlier_restarts + self._recovery.total + self._manager.fleet.restarts
        return replace(TrainerState.initial() if start is None else start[1], restarts=restarts)

    async def _export(self, workers: Workers) -> None:
        with full_disk_named(self._run_dir.path, "exporting the models"):
            await workers.learner.export(self._run_dir.export / "policy")
            if workers.critic is not None:
                await workers.critic.export(self._run_dir.export / "critic")

    # --------------------------------------------------------------------------------------- a loss

    def _delay_after(self, failure: WorkerFailure) -> float:
        what = f"{failure} (after step {self._state.step})"
        self._recorder.event(f"{failure.role}-lost", what, show=True)
        if not self._may_heal and not isinstance(failure, WorkerDied):
            raise failure
        delay = self._recovery.next_delay(self._state.step)
        if delay is None:
            raise self._given_up(failure)
        return delay

    def _given_up(self, failure: WorkerFailure) -> WorkerFailure:
        count, furthest = self._recovery.in_a_row, self._recovery.furthest
        if not count:
            return failure
        vain = f"{count} restarts in a row brought the run no further than step {furthest}"
        return WorkerFailure(failure.worker, f"{failure.what} ({vain})", role=failure.role)

    async def _back_to_checkpoint(self, failure: WorkerFailure) -> StartingPoint:
        self._recorder.phase("restoring", self._state)
        await self._manager.reset(failure)
        skipped: list[str] = []
        # it reads every byte of the checkpoint
        start = await asyncio.to_thread(self._find, skipped.append)
        for text in skipped:
            self._recorder.event("checkpoint-skipped", text, show=True)
        done = self._state.step
        if start is None:
            every = self._config.checkpoint.every
            why = f"the first checkpoint is due after step {every}" if every else "checkpoint.every is 0"
            text = f"goes back from step {done} to its start, for there is no checkpoint yet ({why})"
        else:
            text = f"goes back from step {done} to the checkpoint of step {start[1].step}"
        number, most = self._recovery.in_a_row, self._config.recovery.max_restarts
        self._recorder.event("recovering", f"{text}: restart {number} of {most} without progress", show=True)
        self._state = self._counted(start)
        return start

    def _stopped(self) -> Ended:
        """Return the result of a stop while nothing was training: the state on the disk."""
        return Ended(self._state, {}, stopped=True)

    # -------------------------------------------------------------------------------------- waiting

    async def _unless_stopped(self, work: Awaitable[T]) -> T | None:
        """Return the result of `work`; cancel it and return None when a stop is requested first."""
        return await _first(work, self._gate.stop_asked())

    async def _unless_lost(self, work: Awaitable[T]) -> T:
        """Await `work`. Raises WorkerFailure as soon as a worker is lost."""
        result = await _first(work, self._manager.watch())
        assert result is not None
        return result


async def peak_memory(workers: Workers) -> dict[str, int]:
    """Return the peak bytes of each worker. A worker that does not answer is left out, so that it
    cannot fail a finished run.
    """
    roles = (workers.fleet, workers.learner, workers.critic, workers.reference, workers.reward_client)
    calls = [role.memory() for role in roles if role is not None]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return {name: size for answer in answers if isinstance(answer, Mapping) for name, size in answer.items()}


async def _first(work: Awaitable[T], other: Awaitable[None]) -> T | None:
    """Return the result of `work`, or None when `other` ends first. The first to end may raise; the
    other is cancelled.
    """
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(other)
    both: Sequence[asyncio.Future[Any]] = (working, waiting)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        waiting.result()
        return None
    finally:
        await end_tasks(both)
