"""Applies a run's commands and reports the fleet's state to status.json, twice a second.

    inbox --> scale: fleet    pause, resume, checkpoint, stop: gate of the loop
        --> outcome in control/done, an event

It runs in the trainer's event loop, so a command is applied between two awaits of the training
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from sppo_ray.errors import UserError
from sppo_ray.rollout.fleet import RolloutFleet
from sppo_ray.rollout.views import PendingView
from sppo_ray.rundir.commands import Command, CommandRecord, Inbox, Outcome
from sppo_ray.trainer.pause import PauseGate
from sppo_ray.trainer.recorder import Recorder

POLL_S = 0.5


class Controller:
    """Use `running`."""

    def __init__(
        self,
        inbox: Inbox,
        *,
        gate: PauseGate,
        fleet: RolloutFleet,
        recorder: Recorder,
        pending: Callable[[], list[PendingView]] = list,
    ) -> None:
        """`pending` returns the processes other than engines that have not started yet."""
        self._inbox = inbox
        self._gate = gate
        self._fleet = fleet
        self._recorder = recorder
        self._pending = pending
        self._waiting: set[asyncio.Task[None]] = set()  # unfinished commands
        self._unreadable = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Apply commands during the block. Unfinished commands are refused at its end."""
        polling = asyncio.ensure_future(self._poll())
        try:
            yield
        finally:
            polling.cancel()
            # The result of a checkpoint command needs a few more turns of the event loop.
            _, late = await asyncio.wait(self._waiting, timeout=POLL_S) if self._waiting else (set(), set())
            for task in late:
                task.cancel()
            await asyncio.gather(polling, *late, return_exceptions=True)
            with contextlib.suppress(OSError):  # a full disk must not hide the run's result
                self._inbox.refuse_all("the run has ended")

    async def _poll(self) -> None:
        while True:
            for command in self._received():
                task = asyncio.ensure_future(self._obey(command))
                self._waiting.add(task)
                task.add_done_callback(self._waiting.discard)
            self._update_status()
            await asyncio.sleep(POLL_S)

    def _received(self) -> list[Command]:
        """Return the new commands. While the inbox is unreadable, the run continues without
        commands.
        """
        try:
            commands, self._unreadable = self._inbox.receive(), ""
        except OSError as error:
            if str(error) != self._unreadable:
                with contextlib.suppress(OSError):  # events.jsonl is on the same file system
                    self._recorder.event(
                        "control-unreadable", f"the inbox of commands cannot be read: {error}"
                    )
            commands, self._unreadable = [], str(error)
        return commands

    def _update_status(self) -> None:
        self._recorder.live(
            fleet=self._fleet.view(),
            pending=self._fleet.pending() + self._pending(),
            wanted_workers=self._fleet.wanted,
            paused=self._gate.is_paused,
            stopping=self._gate.is_stopping,
        )

    async def _obey(self, command: Command) -> None:
        try:
            detail = await self._applied(command)
        except UserError as error:
            self._answer(command, "refused", str(error))
        except asyncio.CancelledError:
            self._answer(command, "refused", "the run ended before it could be done")
            raise
        except Exception as error:  # boundary
            # an error in a command must not end the training
            self._answer(command, "refused", f"{type(error).__name__}: {error}")
        else:
            self._answer(command, "done", detail)

    async def _applied(self, command: Command) -> str:
        """Apply a command and describe the effect. Raises UserError for a refused command."""
        gate = self._gate
        if command.kind == "checkpoint":
            return (await gate.ask_for_checkpoint()).name
        if gate.is_stopping:
            raise UserError("the run is stopping already")
        if command.kind == "scale":
            assert command.rollout_workers is not None  # the inbox checks this
            return self._fleet.scale(command.rollout_workers)
        if command.kind == "pause":
            gate.pause()
            return "pauses after the current step"
        if command.kind == "resume":
            was_paused = gate.is_paused
            gate.resume()
            return "resumes" if was_paused else "was not paused"
        gate.stop()
        return "stops after the current step, with a checkpoint"

    def _answer(self, command: Command, outcome: Outcome, detail: str) -> None:
        name = f"{command.kind}{'' if command.rollout_workers is None else f' {command.rollout_workers}'}"
        by = f" by {command.by}" if command.by else ""
        # a full disk must not undo the command
        with contextlib.suppress(OSError):
            self._inbox.answer(command, outcome, detail)
            self._recorder.event("control", f"{name}{by}: {outcome}: {detail}", show=True)
        now = time.time()
        last = CommandRecord(id=command.id, kind=command.kind, outcome=outcome, detail=detail, time=now)
        self._recorder.live(control=last)
        self._update_status()
        with contextlib.suppress(OSError):  # the next beat tries again
            self._recorder.beat()
