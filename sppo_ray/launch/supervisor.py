"""`sppo-ray train --restarts N`: runs the training in a child process and restarts it with --resume
after a crash.

    supervisor --starts--> sppo-ray train ... --run-dir DIR --exit code--> 0, 2, 4, 5, 130, 143: the end
        ^                                                                  killed, 1, 3: wait 1, 2, 4, ... s
        '------------------------ again, with --resume -----------------------'

It reads only the exit code and the number of steps: progress by a step resets the count of
restarts. It passes SIGINT and SIGTERM on, and ends with the run. When the supervisor is killed, the
kernel kills the run.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from sppo_ray.config import RecoverySettings
from sppo_ray.launch.job import SUPERVISOR
from sppo_ray.launch.restarts import Recovery
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.status import read_status

# an unexpected error; a worker permanently lost, which a new Ray cluster may fix. Signals are
# negative
CRASHED = (1, 3)
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
Command = Callable[[bool], Sequence[str]]  # whether to resume -> the command


def train_command(arguments: Sequence[str], run_dir: Path) -> Command:
    """Return the command of `sppo-ray train` with these arguments in `run_dir`."""

    def command(resume: bool) -> list[str]:
        words = [sys.executable, "-m", "sppo_ray", "train", *arguments, "--run-dir", str(run_dir)]
        return [*words, "--resume"] if resume else words

    return command


class Supervisor:
    """Runs the command and restarts it after a crash. Used from the main thread."""

    def __init__(self, command: Command, run_dir: Path, *, restarts: int, backoff_s: float = 1.0) -> None:
        self._command = command
        self._run_dir = RunDir(run_dir)
        self._recovery = Recovery(RecoverySettings(max_restarts=restarts, backoff_s=backoff_s))
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = threading.Event()  # to end
        self._id = secrets.token_hex(8)

    def run(self, *, resume: bool) -> int:
        """Run to the end; return the last process's exit code, or 128 + N when signal N killed
        it.
        """
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while True:
                code = self._one(resume)
                if self._asked.is_set() or not (code < 0 or code in CRASHED):
                    break
                delay = self._recovery.next_delay(self._steps_done())
                if delay is None:
                    break
                self._announce(code)
                if self._asked.wait(delay):
                    break
                resume = self._run_dir.is_run
            return 128 - code if code < 0 else code
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _one(self, resume: bool) -> int:
        # Its own session, so that Ctrl-C reaches only the supervisor, which passes it on once.
        self._process = subprocess.Popen(
            self._command(resume),
            start_new_session=True,
            preexec_fn=_die_with_parent,
            env=os.environ | {SUPERVISOR: self._id},
        )
        if self._asked.is_set():  # received before the process was started
            self._process.terminate()
        return self._process.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._asked.set()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _steps_done(self) -> int:
        return read_status(self._run_dir.path).state.step

    def _announce(self, code: int) -> None:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        count, most = self._recovery.in_a_row, self._recovery.settings.max_restarts
        text = (
            f"the run {how} after step {self._steps_done()}: it is started again (restart {count} of {most} "
            "without progress)"
        )
        print(f"sppo-ray: {text}", file=sys.stderr, flush=True)


def _die_with_parent() -> None:
    """Ask the kernel to kill the child with its parent. Runs in the child before exec."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
