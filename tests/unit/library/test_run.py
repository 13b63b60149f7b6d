"""`Run` reads a run directory; calls work below a running event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest

import sppo_ray as sr
from sppo_ray.config.loading import dump_config, load_config
from sppo_ray.errors import UserError
from sppo_ray.launch.callbacks import Callbacks, StopTraining
from sppo_ray.launch.shutdown import EndSignals
from sppo_ray.library.waiting import wait_for
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.metrics import MetricsWriter
from sppo_ray.rundir.status import RunStatus, StateRow, write_status


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two steps, and an evaluation before and after them."""
    run = RunDir.create(tmp_path / "run", resume=False)
    run.write_config(dump_config(load_config("quickstart", ["--seed=3"])))
    accuracy = ("eval/accuracy", "eval/accuracy_low", "eval/accuracy_high")
    with MetricsWriter(run.path) as metrics:
        metrics.write(0, dict(zip(accuracy, (0.25, 0.2, 0.3), strict=True)) | {"seconds/total": 0.0})
        metrics.write(1, {"seconds/step": 1.0, "reward/mean": 0, "policy/loss": float("nan")})
        metrics.write(2, {"seconds/step": 2.0, "reward/mean": 0.5, "value/mean": 0.75})
        metrics.write(2, dict(zip(accuracy, (0.5, 0.4, 0.6), strict=True)) | {"seconds/total": 3.0})
    state = StateRow(step=2, initial_accuracy=0.25, final_accuracy=0.5)
    write_status(run, RunStatus(phase="finished", state=state))
    run.close()
    return run.path


def test_a_run_as_tables(directory: Path) -> None:
    run = sr.Run(directory)
    metrics = run.metrics
    assert metrics["step"].to_pylist() == [1, 2] and metrics["reward/mean"].to_pylist() == [0.0, 0.5]
    assert metrics["value/mean"].to_pylist() == [None, 0.75]
    assert metrics["policy/loss"].to_pylist() == [None, None]
    assert run.curve.select(["step", "eval/accuracy", "seconds/total"]).to_pylist() == [
        {"step": 0, "eval/accuracy": 0.25, "seconds/total": 0.0},
        {"step": 2, "eval/accuracy": 0.5, "seconds/total": 3.0},
    ]
    assert (run.config.seed, run.status.phase, run.summary) == (3, "finished", None)
    assert repr(run) == f"Run({str(directory)!r}: finished after step 2, accuracy 0.25 to 0.50)"
    assert run.plot().read_bytes().startswith(b"\x89PNG")


def test_what_a_run_does_not_have_is_told(directory: Path) -> None:
    run = sr.Run(directory)
    with pytest.raises(UserError, match="no trajectories of step 0; the run recorded none"):
        run.trajectories()
    with pytest.raises(UserError, match="has no export/policy: let the run finish"):
        _ = run.policy
    with pytest.raises(UserError, match="holds no run"):
        sr.Run(directory / "export")


def test_a_bare_name_is_looked_for_among_the_runs(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPO_RAY_RUNS", str(directory.parent))
    assert sr.Run(directory.name).path == directory


def test_work_with_a_loop_of_its_own_runs_below_a_running_loop() -> None:
    async def cell() -> tuple[str, bool]:
        return wait_for(lambda: (asyncio.run(asyncio.sleep(0, "done")), is_main()))

    def is_main() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert asyncio.run(cell()) == ("done", False)
    assert wait_for(lambda: (asyncio.run(asyncio.sleep(0, "done")), is_main())) == ("done", True)


def test_an_interrupt_below_a_running_loop_stops_and_a_second_one_ends() -> None:
    def work(signals: EndSignals, presses: int) -> str:
        async def train() -> str:
            stopped = asyncio.Event()
            with signals.stopping(stopped.set):
                for _ in range(presses):
                    await asyncio.sleep(0.5)  # until the main thread waits again
                    os.kill(os.getpid(), signal.SIGINT)
                await stopped.wait()
                return "stopped after the step"

        return asyncio.run(train())

    async def cell(presses: int) -> str:
        signals = EndSignals()
        # asyncio's own handler of SIGINT is for its loop; a notebook has Python's
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return wait_for(lambda: work(signals, presses), signals.interrupt)

    before = signal.getsignal(signal.SIGINT)
    try:
        assert asyncio.run(cell(1)) == "stopped after the step"
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(cell(2))
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_before_training_counts_when_it_begins() -> None:
    signals, stops = EndSignals(), []
    signals.interrupt()

    async def train() -> None:
        with signals.stopping(lambda: stops.append(1)):
            pass

    with signals.taken():  # restores the handlers
        asyncio.run(train())
    assert stops == [1]


class FakeRecorder:
    """Notes events, in place of the recorder of a run."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def event(self, kind: str, message: str, *, show: bool = False) -> None:
        self.events.append(message)


def test_a_callback_that_fails_stops_the_run_and_keeps_its_error() -> None:
    recorder, stops, seen = FakeRecorder(), [], []

    def bad(row: object) -> None:
        raise KeyError("mine")

    callbacks = Callbacks([bad, seen.append])
    callbacks.of_run(recorder, stop=lambda: stops.append(1))({"step": 1})
    assert isinstance(callbacks.error, KeyError) and (stops, seen) == ([1], [{"step": 1}])
    assert recorder.events == ["a callback failed, the run stops: KeyError: 'mine'"]


def test_a_callback_may_end_the_run() -> None:
    recorder, stops = FakeRecorder(), []

    def enough(row: object) -> None:
        raise StopTraining("good enough")

    callbacks = Callbacks([enough])
    callbacks.of_run(recorder, stop=lambda: stops.append(1))({"step": 1})
    assert (callbacks.error, stops) == (None, [1])
    assert Callbacks(()).of_run(recorder, stop=lambda: None) is None
