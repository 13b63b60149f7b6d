"""The fault itself: freeze the victim on sight, look whether it is in the state still, and only
then let the fault stand.

    watch --state seen--> SIGSTOP --look again--> as wanted: SIGKILL, or leave it frozen
                                       '--------> too late: SIGCONT, watch on

A state of a tenth of a second would be over before a kill on sight arrives; a frozen victim cannot
leave it. Where the run does not wait for the victim, there is nothing to look at again: it is
struck on sight.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.chaos.cells import Cell
from tests.chaos.run import RunEnded, TrainingRun, WaitedTooLong
from tests.chaos.states import FLEET_TOLD_S, is_held_up, victim

STAGE_TOLD_S = 0.3  # status.json tells of a change of the stage within so long
DRIVER_FROZEN_S = 20.0  # longer than the harness's probe timeouts: it must blame no worker for it


@dataclass(frozen=True, slots=True)
class Struck:
    """What was done, and when."""

    pid: int
    step: int
    at: float  # seconds since 1970


def strike(
    cell: Cell, run: TrainingRun, *, within_s: float, find: Callable[[Cell, TrainingRun], int | None] = victim
) -> Struck:
    """Inject the fault as soon as the cell's state is there. Raises WaitedTooLong and RunEnded."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        pid = run.wait(
            f"the state of {cell.name}", lambda: find(cell, run), max(0.1, deadline - time.monotonic())
        )
        if cell.role == "driver":
            return _strike_driver(cell, run)
        if not is_held_up(cell) or _is_caught(cell, run, pid, find):
            step = run.step
            os.kill(pid, signal.SIGKILL if cell.fault == "SIGKILL" else signal.SIGSTOP)
            return Struck(pid, step, time.time())
    raise WaitedTooLong(f"{cell.name}: its state passed too quickly, {within_s:.0f} s long")


def _is_caught(
    cell: Cell, run: TrainingRun, pid: int, find: Callable[[Cell, TrainingRun], int | None]
) -> bool:
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    time.sleep(FLEET_TOLD_S if cell.role == "rollout" else STAGE_TOLD_S)
    if find(cell, run) == pid:
        return True
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return False


def _strike_driver(cell: Cell, run: TrainingRun) -> Struck:
    """It writes status.json itself, so that what it says now is what it does now."""
    run.refresh()  # whatever it leaves behind is known
    struck = Struck(run.pid, run.step, time.time())
    if cell.fault == "SIGKILL":
        os.kill(run.pid, signal.SIGKILL)
        return struck
    os.kill(run.pid, signal.SIGSTOP)
    time.sleep(DRIVER_FROZEN_S)
    os.kill(run.pid, signal.SIGCONT)
    if not run.is_alive:
        raise RunEnded("the trainer did not survive being frozen")
    return struck
