"""How each state of the matrix is brought about, and by what it is recognised in status.json."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil

from sppo_ray.rewards.pool.process import WORKER
from tests.chaos.cells import Cell, Role
from tests.chaos.run import TrainingRun

STAGES = {  # state -> the loop's stages, as recorder.stage names them
    "generating": ("generate-wait",),
    "updating": ("update",),
    "syncing": ("sync",),
    "evaluating": ("evaluate",),
    "checkpointing": ("checkpoint",),
}
OWN_STAGES = {
    ("critic", "updating"): ("update", "critic-wait"),
    ("reference", "updating"): ("reference", "update"),
}
# whose freezing keeps the run in the state; the others' states are gone while one looks again
HELD_UP_BY = {
    "generating": ("rollout", "reward", "verifier"),
    "updating": ("learner", "critic", "reference"),
    "syncing": ("rollout", "learner"),
    "evaluating": ("rollout", "reward", "verifier"),
    "checkpointing": ("learner", "critic"),
    "draining": ("rollout",),
}
FLEET_TOLD_S = 0.7  # status.json tells of a change of the fleet's table within so long


def is_held_up(cell: Cell) -> bool:
    """Whether a frozen victim keeps the run in the cell's state."""
    return not cell.staleness and cell.role in HELD_UP_BY.get(cell.state, ())


def prepare(cell: Cell, run: TrainingRun) -> None:
    """Ask for what the run would not do by itself now."""
    if cell.state in ("paused", "idle"):
        run.send("pause")
    elif cell.state == "checkpointing":
        run.send("checkpoint")
    elif cell.state == "restoring":
        _lose_the_learner(run)
    elif cell.role == "rollout" and cell.state == "starting":
        run.send("scale", rollout_workers=run.status["wanted_workers"] + 1)
    elif cell.role == "rollout" and cell.state == "draining":
        _drain(run)


def _lose_the_learner(run: TrainingRun) -> None:
    pid = run.pid_of("learner-0", run.status)
    assert pid is not None, "a whole run has a learner"
    os.kill(pid, signal.SIGKILL)
    run.wait("the loss of the learner", lambda: run.status.get("phase") == "restoring", within_s=60)


def _drain(run: TrainingRun) -> None:
    """The newest of three engines, frozen while it has work: it would drain in less than a
    second.
    """
    if run.status["wanted_workers"] < 3:
        run.send("scale", rollout_workers=3)
    run.wait("a third engine", lambda: _healthy(run.status) == 3, within_s=180)
    while True:
        pid = run.wait("work for the newest engine", lambda: _busy_newest(run), within_s=60)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(FLEET_TOLD_S)
        if _busy_newest(run) == pid:
            break
        os.kill(pid, signal.SIGCONT)
    run.send("scale", rollout_workers=2)


def _busy_newest(run: TrainingRun) -> int | None:
    status = run.status
    newest = max(status["fleet"], key=lambda row: int(row["name"].rpartition("-")[2]))
    return (
        run.pid_of(newest["name"], status)
        if newest["in_flight"] and status.get("stage") == "generate-wait"
        else None
    )


def _healthy(status: Mapping[str, Any]) -> int:
    return sum(row["state"] == "HEALTHY" for row in status.get("fleet", []))


def undo(cell: Cell, run: TrainingRun) -> None:
    """Let the run go on after the fault. An idle engine is to be missed without being asked for
    anything: in the pause.
    """
    if not run.is_alive or cell.state not in ("paused", "idle"):
        return
    try:
        if cell.state == "idle":
            run.wait(
                "the loss of the idle engine",
                lambda: _healthy(run.status) < run.status["wanted_workers"],
                within_s=60,
            )
            run.wait("its return", lambda: _healthy(run.status) == run.status["wanted_workers"], within_s=180)
    finally:
        run.send("resume")


def victim(cell: Cell, run: TrainingRun) -> int | None:
    """The process to strike, when the run and its victim are in the cell's state now; else None."""
    status = run.status
    if not holds(cell, status):
        return None
    pid = _engine(cell, run, status) if cell.role == "rollout" else _process(cell.role, run, status)
    return pid if pid is not None and is_running(pid) else None


def is_running(pid: int) -> bool:
    """Frozen counts; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def holds(cell: Cell, status: Mapping[str, Any]) -> bool:
    """Whether the run as a whole is in the cell's state."""
    phase, stage = status.get("phase"), status.get("stage")
    if cell.state in ("paused", "idle"):
        return phase == "paused"
    if cell.state == "restoring":
        return phase == "restoring"
    if cell.needs_new_run:
        return phase == "starting actors"
    if phase != "training" or cell.state in ("starting", "draining"):
        return phase == "training"
    if cell.staleness and cell.state == "generating":
        return any(row["in_flight"] for row in status.get("fleet", []))
    return stage in OWN_STAGES.get((cell.role, cell.state), STAGES[cell.state])


def _engine(cell: Cell, run: TrainingRun, status: Mapping[str, Any]) -> int | None:
    rows = status.get("fleet", [])
    if cell.state == "starting":
        names = [row["name"] for row in rows if row["state"] == "RESTARTING"]
        coming = run.workers_coming_up("rollout") if names else []
        return (
            coming[-1] if coming else next((pid for name in names if (pid := run.pid_of(name, status))), None)
        )
    if cell.state == "draining":
        names = [row["name"] for row in rows if row["state"] == "DRAINING" and row["in_flight"]]
    elif cell.state == "generating":
        names = [row["name"] for row in rows if row["state"] == "HEALTHY" and row["in_flight"]]
    else:
        names = [row["name"] for row in rows if row["state"] == "HEALTHY"]
    return next((pid for name in reversed(names) if (pid := run.pid_of(name, status))), None)


def _process(role: Role, run: TrainingRun, status: Mapping[str, Any]) -> int | None:
    if role == "driver":
        return run.pid
    if role == "verifier":
        return scoring_child(run.pid_of("reward", status))
    name = "reward" if role == "reward" else f"{role}-0"
    pid = run.pid_of(name, status)
    if pid is None:
        coming = run.workers_coming_up(role)
        pid = coming[-1] if coming else None
    return pid


def scoring_child(reward: int | None) -> int | None:
    """The process that runs the verifier's code: a leaf below the reward actor."""
    if reward is None:
        return None
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(reward).children(recursive=True)
        leaves = [
            process
            for process in below
            if WORKER in process.cmdline() and not process.children()
        ]
        return leaves[0].pid if leaves else None
    return None
