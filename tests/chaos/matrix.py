"""Cell after cell: bring the run into the state, strike, wait until it is whole again, and read
from its record what it cost.

One run takes many faults, one after another; a new one starts when the old one is as long as the
undisturbed run that it is compared with. Cells that are finished are kept: a second call goes on
where the first one ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.cells import Cell
from tests.chaos.outcomes import CellOutcome, Ledger, RunOutcome
from tests.chaos.record import audit, first_difference
from tests.chaos.run import RunEnded, TrainingRun, WaitedTooLong
from tests.chaos.states import is_running, prepare, undo
from tests.chaos.strike import Struck, strike

PROMPTS, SAMPLES_PER_PROMPT = 64, 1
# of the undisturbed runs: a run that is as long takes no further fault
COMPARED_STEPS, COMPARED_WITH_REFERENCE = 60, 20
STATE_WITHIN_S, UP_WITHIN_S, GONE_WITHIN_S = 120.0, 300.0, 60.0
HEALS_WITHIN_S = 360.0  # an engine that freezes while it starts has 180 s
MOST_RESUMES = 3  # of one cell
LOOK_BACK_STEPS = 8  # a restored run takes steps again: they are looked at again
SETTINGS = [
    f"--data.prompts_per_step={PROMPTS}",
    "--data.minibatch_size=16",
    "--data.held_out.0.size=48",
    "--critic.warmup_steps=0",
    "--loop.steps=10000",  # never reached: the learning rate's schedule is the same for all
    "--eval.every=4",
    "--checkpoint.every=4",
    "--checkpoint.export=false",
    "--rollout.workers=2",
    "--rollout.cpus_per_worker=0.25",
    "--rollout.start_timeout_s=180",
    "--rollout.probe_every_s=1",
    "--rollout.probe_timeout_s=10",
    "--rollout.stall_timeout_s=60",
    "--rollout.max_restarts=10",
    "--rollout.restart_window_s=60",
    "--recovery.max_restarts=10",
    "--recovery.probe_every_s=1",
    "--recovery.probe_timeout_s=10",
    "--reward.processes=2",
    "--reward.deadline_s=5",
    "--guardrails.action=warn",
    "--logging.progress=plain",
    "--logging.tensorboard=false",
    "--cluster.local_cpus=8",
    "--seed=11",
]
WITH_REFERENCE = ["--algorithm.kl.coefficient=0.001"]  # so that there is a reference to lose


@dataclass(frozen=True, slots=True)
class Kind:
    """Cells that can share a run."""

    staleness: int
    with_reference: bool

    @classmethod
    def of(cls, cell: Cell) -> Kind:
        return cls(cell.staleness, cell.role == "reference")

    @property
    def name(self) -> str:
        return ("overlapped" if self.staleness else "synchronous") + (
            "-reference" if self.with_reference else ""
        )

    @property
    def compared_steps(self) -> int:
        return COMPARED_WITH_REFERENCE if self.with_reference else COMPARED_STEPS

    @property
    def settings(self) -> list[str]:
        return [
            *SETTINGS,
            f"--loop.max_staleness={self.staleness}",
            *(WITH_REFERENCE if self.with_reference else []),
        ]


class Matrix:
    """Runs cells of one kind after another. `say` hears what is going on."""

    def __init__(
        self, work: Path, ledger: Ledger, say: Callable[[str], None], *, until: float = float("inf")
    ) -> None:
        """After `until` (by time.monotonic) no further cell is begun."""
        self._work = work
        self._ledger = ledger
        self._say = say
        self._until = until

    def run(self, cells: Sequence[Cell]) -> None:
        kinds = sorted({Kind.of(cell) for cell in cells}, key=lambda kind: kind.name, reverse=True)
        for kind in kinds:
            self._run_kind(kind, [cell for cell in cells if Kind.of(cell) == kind])

    def _run_kind(self, kind: Kind, cells: list[Cell]) -> None:
        if kind.staleness == 0:
            with self._ledger.lock(kind.name):
                self._undisturbed(kind)
        # Those that need a run that comes up open a run each; the others fill what is left of its
        # steps.
        openers = [cell for cell in cells if cell.needs_new_run]
        others = [cell for cell in cells if not cell.needs_new_run]
        while (openers or others) and not self._is_late:
            self._one_run(kind, openers.pop(0) if openers else None, others)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() > self._until

    def _one_run(self, kind: Kind, opener: Cell | None, others: list[Cell]) -> None:
        run = self._new_run(self._work / f"{kind.name}-{time.strftime('%H%M%S')}-{os.getpid()}", kind)
        done: list[CellOutcome] = []
        try:
            run.start()
            if opener is not None:
                done.append(self._cell(opener, run, kind))
            else:
                run.wait_until_whole(0, UP_WITHIN_S)
            while others and run.step < kind.compared_steps and _is_sound(done) and not self._is_late:
                done.append(self._cell(others.pop(0), run, kind))
            self._say("ending the run")
            faults = run.end()
        finally:
            run.close()
        self._ledger.add_run(self._compared(kind, run, done, faults))

    def _new_run(self, path: Path, kind: Kind) -> TrainingRun:
        return TrainingRun(path, kind.settings)

    def _cell(self, cell: Cell, run: TrainingRun, kind: Kind) -> CellOutcome:
        self._say(f"{cell.name}: waiting for the state")
        resumes, began = run.resumes, run.step
        problem = None
        struck = Struck(0, began, time.time())
        try:
            struck = self._struck(cell, run)
            self._heal(run, struck, most_resumes=run.resumes + MOST_RESUMES)
            # an idle verifier is only missed when a sample waits for it
            if cell.role != "driver" and struck.pid:
                run.wait(
                    f"the end of process {struck.pid}", lambda: not is_running(struck.pid), GONE_WITHIN_S
                )
        except (WaitedTooLong, RunEnded) as error:
            problem = str(error)
        seconds = time.time() - struck.at
        steps = range(max(1, min(began, struck.step) - LOOK_BACK_STEPS), run.step + 1)
        cost = audit(
            run.path, steps, prompts=PROMPTS, samples_per_prompt=SAMPLES_PER_PROMPT, staleness=kind.staleness
        )
        outcome = CellOutcome(
            cell.name,
            round(seconds, 1),
            cost,
            resumes=run.resumes - resumes,
            problem=problem,
            run=run.path.name,
        )
        self._ledger.add(outcome)
        return outcome

    def _struck(self, cell: Cell, run: TrainingRun) -> Struck:
        try:
            prepare(cell, run)
            struck = strike(cell, run, within_s=UP_WITHIN_S if cell.needs_new_run else STATE_WITHIN_S)
        finally:
            undo(cell, run)
        self._say(f"{cell.name}: struck {struck.pid} in step {struck.step}, healing")
        return struck

    def _heal(self, run: TrainingRun, struck: Struck, *, most_resumes: int) -> None:
        """Wait until a step that the fault hit, or a later one, is finished and all workers serve;
        resume a run that ended.
        """
        while True:
            try:
                run.wait(f"step {struck.step + 1}", lambda: _has_advanced(run, struck), HEALS_WITHIN_S)
                run.rest_until_whole(HEALS_WITHIN_S, since=struck.at)
                run.wait_until_whole(struck.step + 1, HEALS_WITHIN_S, since=struck.at)
                return
            except RunEnded as ended:
                if run.resumes == most_resumes:
                    raise
                self._say(f"{ended}; resuming")
                run.resume()

    def _undisturbed(self, kind: Kind) -> None:
        """The run that the synchronous ones are compared with; made once, kept in the work
        folder.
        """
        run = TrainingRun(self._reference(kind), kind.settings)
        if (run.path / "summary.json").exists():
            return
        self._say(f"the undisturbed run ({kind.compared_steps} steps)")
        try:
            run.start(resume=(run.path / "config.yaml").exists())
            run.wait(
                "the undisturbed run",
                lambda: run.step >= kind.compared_steps,
                within_s=30 * kind.compared_steps,
            )
            faults = run.end()
        finally:
            run.close()
        if faults:
            raise RunEnded(f"the undisturbed run did not end well: {faults}")

    def _reference(self, kind: Kind) -> Path:
        return self._work / f"undisturbed-{kind.name}"

    def _compared(
        self, kind: Kind, run: TrainingRun, done: list[CellOutcome], faults: list[str]
    ) -> RunOutcome:
        whole = audit(
            run.path,
            range(1, run.step + 1),
            prompts=PROMPTS,
            samples_per_prompt=SAMPLES_PER_PROMPT,
            staleness=kind.staleness,
        )
        compared, difference = (
            (0, None) if kind.staleness else first_difference(run.path, self._reference(kind))
        )
        return RunOutcome(
            run.path.name, [o.name for o in done], run.step, run.resumes, whole, compared, difference, faults
        )


def _has_advanced(run: TrainingRun, struck: Struck) -> bool:
    status = run.status
    return status.get("heartbeat", 0.0) > struck.at and status.get("state", {}).get("step", -1) > struck.step


def _is_sound(done: Sequence[CellOutcome]) -> bool:
    """Whether the run can take another fault: the last one was healed."""
    return not done or done[-1].problem is None
