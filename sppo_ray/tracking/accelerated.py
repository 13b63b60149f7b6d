"""Use a tracker of Accelerate: its calls run in a thread of their own, so that a slow or absent
server neither delays nor ends the run.

The run's id in W&B and MLflow is kept in trackers.json, so a resumed run continues there. Neither
can remove a point, so the steps that a resumed run repeats stay as well (MLflow), or are ignored
(W&B). metrics.jsonl has the true ones.
"""

from __future__ import annotations

import queue
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.tracking import MLflowTracker, WandBTracker

from sppo_ray.config import RunConfig
from sppo_ray.config.flat import flatten
from sppo_ray.errors import UserError
from sppo_ray.redaction import redact
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.tracked import read_tracked, remember_tracked

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

START_S = 120.0
CLOSE_S = 60.0


class AccelerateTracker:
    """Implements `Tracker`. `entry` is that of another package's tracker; None = one of ours."""

    def __init__(
        self,
        name: str,
        entry: EntryPoint | None,
        config: RunConfig,
        run_dir: RunDir,
        report: Callable[[str], None],
    ) -> None:
        self._name, self._report = name, report
        self._error: Exception | None = None  # of the thread, not yet reported
        self._is_reported = False
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()
        known = read_tracked(run_dir.path).get(name)
        started: Future[GeneralTracker] = Future()

        def start() -> None:
            try:
                started.set_result(_started(name, entry, known, config, run_dir))
            except BaseException as error:  # boundary: `result` raises it
                started.set_exception(error)

        self._calls.put(start)
        self._tracker: GeneralTracker | None = None
        try:
            self._tracker = started.result(START_S)
        except Exception as error:  # boundary: a tracker may raise anything
            text = f"logging.trackers: {name} does not start ({_first_line(error)})"
            if not run_dir.has_results:
                raise UserError(f"{text}: see its own settings, or take it out of logging.trackers") from None
            report(f"{text}; the run continues without it")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._tracker is not None:
            values = {_plain_name(name): value for name, value in metrics.items()}
            self._calls.put(lambda: self._tracker.log(values, step=step))
        self._report_error()

    def forget_from(self, step: int) -> None:
        """Do nothing, see the head of this file."""

    def close(self) -> None:
        """Hand everything over; what a server does not take within a minute is left."""
        if self._tracker is not None:
            self._calls.put(self._tracker.finish)
        self._calls.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._report(f"logging.trackers: {self._name} did not end within {CLOSE_S:g} s")
        self._report_error()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:  # boundary: a tracker may raise anything
                self._error = error

    def _report_error(self) -> None:
        """Report the first error. Later ones mostly have the same cause."""
        if self._error is not None and not self._is_reported:
            self._is_reported = True
            self._report(
                f"logging.trackers: {self._name} failed ({_first_line(self._error)}); the run goes on, and "
                "metrics.jsonl has everything"
            )


def _started(
    name: str, entry: EntryPoint | None, known: str | None, config: RunConfig, run_dir: RunDir
) -> GeneralTracker:
    """Start the tracker for a new run, or for the run with the `known` id."""
    PartialState(cpu=True)  # Accelerate's trackers ask it whether this is the main process
    tracker = _new(name, entry, known, config.logging.project, run_dir)
    tracker.start()
    if known is None or name != "mlflow":  # which refuses a parameter with another value
        tracker.store_init_configuration(_settings_of(config))
    if entry is None:
        run = tracker.tracker
        remember_tracked(run_dir, name, run.id if name == "wandb" else run.info.run_id)
    return tracker


def _new(
    name: str, entry: EntryPoint | None, known: str | None, project: str, run_dir: RunDir
) -> GeneralTracker:
    if entry is not None:
        return _of_other_package(entry, project, run_dir)
    if name == "mlflow":
        return MLflowTracker(project, run_id=known, run_name=run_dir.path.name)
    return WandBTracker(
        project,
        id=known or secrets.token_hex(4),
        resume="allow",
        name=run_dir.path.name,
        dir=str(run_dir.path),
        settings={"silent": True, "console": "off"},  # stdout belongs to the run's progress
    )


def _of_other_package(entry: EntryPoint, project: str, run_dir: RunDir) -> GeneralTracker:
    """Make a tracker as Accelerate does: with the project's name, and with a directory if it wants
    one. The directory is the same in a resumed run.
    """
    tracker_class: Any = entry.load()
    if not getattr(tracker_class, "requires_logging_directory", False):
        return tracker_class(project)
    directory = run_dir.trackers / entry.name
    directory.mkdir(parents=True, exist_ok=True)
    return tracker_class(project, str(directory))


def _settings_of(config: RunConfig) -> dict[str, Any]:
    flat = flatten(config.model_dump(mode="json"))
    return {_plain_name(name): value if _is_plain(value) else str(value) for name, value in flat.items()}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _plain_name(name: str) -> str:
    """Replace what MLflow allows in no name: pass@4 becomes pass_at_4."""
    return re.sub(r"[^\w./ :-]", "_", name.replace("@", "_at_"))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return redact(f"{type(error).__name__}: {text[0]}" if text else type(error).__name__)
