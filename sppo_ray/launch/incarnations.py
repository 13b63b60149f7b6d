"""A run through the losses of its workers, inside one driver process.

    newest whole checkpoint --> crew.assemble --> restore --> push weights --> train ... export --> Ended
            ^                                                                    | WorkerFailure
            '---- wait 1, 2, 4, ... s <-- records of later steps are dropped <-- crew.disband

Nothing is admitted to the engines before the restored learner's version was pushed and verified: that is how `Trainer.run`
begins. A run without a checkpoint goes back to its start, with the same seed: it becomes the run that nothing had disturbed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from sppo_ray.config import RunConfig
from sppo_ray.launch.workers import peak_memory
from sppo_ray.trainer.checkpoint import TrainerState, resumable_settings
from sppo_ray.trainer.disk import full_disk_named
from sppo_ray.trainer.gate import Gate
from sppo_ray.trainer.interfaces import WorkerDied, WorkerFailure
from sppo_ray.trainer.loop import PromptSource, Trainer, Workers
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.recovery import Recovery
from sppo_ray.trainer.rundir import RunDir

T = TypeVar("T")
StartingPoint = tuple[Path, TrainerState] | None  # a checkpoint to go on from, or None for a new run
Find = Callable[[Callable[[str], None]], StartingPoint]  # told of each checkpoint that is not whole


class Crew(Protocol):
    """`sppo_ray.launch.crew.Crew`."""

    fleet: Any

    async def assemble(self) -> Workers: ...

    async def watch(self) -> NoReturn: ...

    async def disband(self, failure: WorkerFailure) -> None: ...


@dataclass(frozen=True, slots=True)
class Ended:
    """How the training ended, with everything written but the summary."""

    state: TrainerState
    memory: Mapping[str, int]  # peak bytes by worker
    stopped: bool  # before its last step, on request


class Incarnations:
    """Trains until the run is over, is stopped, or has used up its restarts."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: RunDir,
        recorder: Recorder,
        prompts: PromptSource,
        *,
        crew: Crew,
        gate: Gate,
        find: Find,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._recorder = recorder
        self._prompts = prompts
        self._crew = crew
        self._gate = gate
        self._find = find
        self._recovery = Recovery(config.recovery)
        self._state = TrainerState.initial()  # as last known
        self._earlier_restarts = 0  # of earlier processes of this run
        self._may_heal = False  # until the first start has shown that the workers can start, what fails fails again

    async def run(self, start: StartingPoint) -> Ended:
        """Raises WorkerFailure with the culprit's name when the restarts are used up, and what no restart can mend."""
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
        workers = await self._unless_stopped(self._crew.assemble())
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
        )
        self._recorder.begin(self._state)
        try:
            state = await trainer.run()
        finally:
            self._state = trainer.state
        self._recorder.phase("finishing", state)
        memory = await peak_memory(workers)  # before the export, which needs more than training does
        if self._config.checkpoint.export and not trainer.stopped_early:
            await self._export(workers)
        return Ended(state, memory, trainer.stopped_early)

    async def _restore(self, workers: Workers, start: StartingPoint) -> None:
        """Load the checkpoint into learner and critic; the state to go on from is `_state` then."""
        self._state = self._counted(start)
        if start is None:
            self._recorder.restore(None)
            return
        path, state = start
        self._recorder.restore(path / "records")
        await workers.learner.load(path / "learner")
        if workers.critic is not None:
            await workers.critic.load(path / "critic")
            workers.critic.restore_version(state.critic_version)
        self._recorder.event("restored", f"from {path.name}", show=True)

    def _counted(self, start: StartingPoint) -> TrainerState:
        """The state of a starting point, with all restarts until now."""
        restarts = self._earlier_restarts + self._recovery.total + self._crew.fleet.restarts
        return replace(TrainerState.initial() if start is None else start[1], restarts=restarts)

    async def _export(self, workers: Workers) -> None:
        with full_disk_named(self._run_dir.path, "exporting the models"):
            await workers.learner.export(self._run_dir.export / "policy")
            if workers.critic is not None:
                await workers.critic.export(self._run_dir.export / "critic")

    # ------------------------------------------------------------------------------------------------------ a loss

    def _delay_after(self, failure: WorkerFailure) -> float:
        role = failure.worker.split()[-1].split("-")[0]  # "rollout fleet", "learner-0", "reward"
        self._recorder.event(f"{role}-lost", f"{failure} (after step {self._state.step})", show=True)
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
        what = str(failure).removeprefix(f"{failure.worker}: ")
        vain = f"{count} restarts in a row brought the run no further than step {furthest}"
        return WorkerFailure(failure.worker, f"{what} ({vain})")

    async def _back_to_checkpoint(self, failure: WorkerFailure) -> StartingPoint:
        self._recorder.phase("restoring", self._state)
        await self._crew.disband(failure)
        skipped: list[str] = []
        start = await asyncio.to_thread(self._find, skipped.append)  # it reads every byte of the checkpoint
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
        """Asked to stop while nothing was training: what is on the disk is all there is."""
        return Ended(self._state, {}, stopped=True)

    # ----------------------------------------------------------------------------------------------------- waiting

    async def _unless_stopped(self, work: Awaitable[T]) -> T | None:
        """None when a stop was asked for first; the work is cancelled then."""
        return await _first(work, self._gate.stop_asked())

    async def _unless_lost(self, work: Awaitable[T]) -> T:
        """Raises WorkerFailure as soon as a worker is lost, whatever the work waits for."""
        result = await _first(work, self._crew.watch())
        assert result is not None
        return result


async def _first(work: Awaitable[T], other: Awaitable[None]) -> T | None:
    """What `work` gives, or None when `other` ends first. Raises what the first to end raises; the other one is cancelled."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(other)
    both: Sequence[asyncio.Future[Any]] = (working, waiting)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        waiting.result()
        return None
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
