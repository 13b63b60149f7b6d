"""Applies the commands of a run's inbox, and tells status.json how the fleet stands, twice a second.

    inbox --> scale: fleet    pause, resume, checkpoint, stop: gate of the loop --> outcome in control/done, an event

It runs beside the loop in the trainer's own event loop, so that a command is applied between two awaits of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict

from sppo_ray.errors import UserError
from sppo_ray.trainer.control import Command, Inbox, Outcome
from sppo_ray.trainer.fleet import RolloutFleet
from sppo_ray.trainer.fleet_members import PendingView
from sppo_ray.trainer.gate import Gate
from sppo_ray.trainer.recorder import Recorder

POLL_S = 0.5


class Controller:
    """Use `running`."""

    def __init__(
        self,
        inbox: Inbox,
        *,
        gate: Gate,
        fleet: RolloutFleet,
        recorder: Recorder,
        pending: Callable[[], list[PendingView]] = list,
    ) -> None:
        """`pending` tells of processes beside the fleet's that are waited for."""
        self._inbox = inbox
        self._gate = gate
        self._fleet = fleet
        self._recorder = recorder
        self._pending = pending
        self._waiting: set[asyncio.Task[None]] = set()  # commands that are done only later
        self._unreadable = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Commands are obeyed for the length of the block; what is left at its end is refused."""
        polling = asyncio.ensure_future(self._poll())
        try:
            yield
        finally:
            polling.cancel()
            # A checkpoint that was asked for and written has its answer in the next turns of the event loop.
            _, late = await asyncio.wait(self._waiting, timeout=POLL_S) if self._waiting else (set(), set())
            for task in late:
                task.cancel()
            await asyncio.gather(polling, *late, return_exceptions=True)
            with contextlib.suppress(OSError):  # a full disk must not hide how the run ended
                self._inbox.refuse_all("the run has ended")

    async def _poll(self) -> None:
        while True:
            for command in self._received():
                task = asyncio.ensure_future(self._obey(command))
                self._waiting.add(task)
                task.add_done_callback(self._waiting.discard)
            self._tell()
            await asyncio.sleep(POLL_S)

    def _received(self) -> list[Command]:
        """New commands. A file system that fails for a while costs the run its ear, not its life."""
        try:
            commands, self._unreadable = self._inbox.receive(), ""
        except OSError as error:
            if str(error) != self._unreadable:
                with contextlib.suppress(OSError):  # the same file system
                    self._recorder.event("control-unreadable", f"the inbox of commands cannot be read: {error}")
            commands, self._unreadable = [], str(error)
        return commands

    def _tell(self) -> None:
        self._recorder.live(
            fleet=[asdict(worker) for worker in self._fleet.view()],
            pending=[asdict(worker) for worker in self._fleet.pending() + self._pending()],
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
        except Exception as error:  # boundary: whatever a command runs into, the training is not to end with it
            self._answer(command, "refused", f"{type(error).__name__}: {error}")
        else:
            self._answer(command, "done", detail)

    async def _applied(self, command: Command) -> str:
        """Do it and say what that means. Raises UserError when it cannot be done."""
        gate = self._gate
        if command.kind == "checkpoint":
            return (await gate.ask_for_checkpoint()).name
        if gate.is_stopping:
            raise UserError("the run is stopping already")
        if command.kind == "scale":
            assert command.rollout_workers is not None  # the inbox lets no other pass
            return self._fleet.scale(command.rollout_workers)
        if command.kind == "pause":
            gate.pause()
            return "pauses after the step under way"
        if command.kind == "resume":
            was_paused = gate.is_paused
            gate.resume()
            return "goes on" if was_paused else "was not paused"
        gate.stop()
        return "stops after the step under way, with a checkpoint"

    def _answer(self, command: Command, outcome: Outcome, detail: str) -> None:
        asked = f"{command.kind}{'' if command.rollout_workers is None else f' {command.rollout_workers}'}"
        by = f" by {command.by}" if command.by else ""
        with contextlib.suppress(OSError):  # it was obeyed; that the answer cannot be written must not undo that
            self._inbox.answer(command, outcome, detail)
            self._recorder.event("control", f"{asked}{by}: {outcome}: {detail}", show=True)
        last = {"id": command.id, "kind": command.kind, "outcome": outcome, "detail": detail, "time": time.time()}
        self._recorder.live(control=last)
        self._tell()
        with contextlib.suppress(OSError):  # the next beat tells it
            self._recorder.beat()
