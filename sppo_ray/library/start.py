"""Start or continue a run in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sppo_ray.cli.train import run_training
from sppo_ray.config import RunConfig
from sppo_ray.launch.callbacks import Callback, Callbacks
from sppo_ray.launch.shutdown import EndSignals
from sppo_ray.library.waiting import wait_for


def start(config: RunConfig, place: Path, *, resume: bool, callbacks: Sequence[Callback]) -> None:
    """Train until the run has ended. Raises what the command would print, SystemExit after SIGTERM,
    and the error of a callback.
    """
    called, signals = Callbacks(callbacks), EndSignals()
    code = wait_for(
        lambda: run_training(config, place, resume=resume, callbacks=called, signals=signals),
        signals.interrupt,
    )
    if called.error is not None:
        raise called.error
    if code:
        raise SystemExit(code)
