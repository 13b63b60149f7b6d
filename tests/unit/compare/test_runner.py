"""The runner with real processes that only write a summary: order, cores, failures, continuing,
ending.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sppo_ray.compare.arms import Arm
from sppo_ray.compare.plan import Job, Plan
from sppo_ray.compare.runner import Runner, core_shares, failure, how_it_ended, is_finished, run_path
from sppo_ray.errors import UserError
from sppo_ray.rundir.layout import RunDir

# A process that leaves what a finished run leaves, and the cores it was given.
FINISH = """
import json, os, pathlib, sys, time
time.sleep(float(sys.argv[2]))
run = pathlib.Path(sys.argv[1]); run.mkdir(parents=True)
(run / "cores.json").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
(run / "summary.json").write_text(json.dumps({"status": "finished", "initial_accuracy": 0.4, "final_accuracy": 0.8, "steps": 12,
                                              "seconds": 60.0}))
"""  # noqa: E501
PLAN = Plan("quickstart", (), (Arm("sppo", ()), Arm("grpo", ())), (1, 2), 60.0, 1, 1, (), "sppo")


def finishes(out: Path, seconds: float = 0.0) -> Callable[[Job], list[str]]:
    return lambda job: [sys.executable, "-c", FINISH, str(run_path(out, job)), str(seconds)]


def test_all_runs_in_order_and_none_twice(tmp_path: Path) -> None:
    said: list[str] = []
    Runner(PLAN, tmp_path, said.append, finishes(tmp_path)).run()
    assert all(is_finished(run_path(tmp_path, job)) for job in PLAN.jobs)
    assert list(how_it_ended(tmp_path)) == ["sppo-seed1", "grpo-seed1", "sppo-seed2", "grpo-seed2"]
    assert said[1].startswith("sppo, seed 1: accuracy 0.40 → 0.80 after 12 steps, 1m00s of training; 3 to go")
    assert said[-1] == "grpo, seed 2: accuracy 0.40 → 0.80 after 12 steps, 1m00s of training"

    said.clear()
    Runner(replace(PLAN, seeds=(1, 2, 3)), tmp_path, said.append, finishes(tmp_path)).run()
    assert said[0] == "4 of 6 runs are finished already"
    assert [line for line in said if "started" in line and "seed 3" not in line] == []


def test_a_failed_run_is_noted_and_the_others_go_on_and_it_is_tried_again(tmp_path: Path) -> None:
    good = finishes(tmp_path)

    def command(job: Job) -> list[str]:
        fails = "import sys; print('starting'); print('error: no such model', file=sys.stderr); sys.exit(2)"
        return [sys.executable, "-c", fails] if job.arm == "grpo" else good(job)

    said: list[str] = []
    Runner(PLAN, tmp_path, said.append, command).run()
    assert "grpo, seed 1: FAILED (exit 2: no such model); 2 to go" in said[3]
    assert failure(tmp_path, Job("grpo", 2)) == "exit 2: no such model"
    assert failure(tmp_path, Job("grpo", 3)) is None
    assert is_finished(run_path(tmp_path, Job("sppo", 2)))

    Runner(PLAN, tmp_path, said.append, good).run()
    assert is_finished(run_path(tmp_path, Job("grpo", 1)))


def test_a_run_that_was_cut_off_starts_over(tmp_path: Path) -> None:
    run = RunDir(run_path(tmp_path, Job("sppo", 1)))
    run.path.mkdir(parents=True)
    run.metrics.write_text('{"step": 1}\n')
    Runner(replace(PLAN, seeds=(1,)), tmp_path, lambda line: None, finishes(tmp_path)).run()
    assert is_finished(run.path) and not run.metrics.exists()


def test_a_run_that_another_process_still_writes_is_left_alone(tmp_path: Path) -> None:
    run = RunDir.create(run_path(tmp_path, Job("sppo", 1)), resume=False)
    run.metrics.write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="is in use by pid"):
        Runner(PLAN, tmp_path, lambda line: None, finishes(tmp_path)).run()
    assert run.metrics.exists()
    run.close()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_runs_at_the_same_time_have_cores_of_their_own(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    said: list[str] = []
    Runner(replace(PLAN, seeds=(1,), concurrent=2), tmp_path, said.append, finishes(tmp_path, 2.0)).run()
    assert ["started" in line for line in said if ", seed 1: " in line] == [True, True, False, False]
    cores = [
        set(json.loads((run_path(tmp_path, job) / "cores.json").read_text()))
        for job in replace(PLAN, seeds=(1,)).jobs
    ]
    assert not cores[0] & cores[1] and len(cores[0]) == len(cores[1])
    assert os.sched_getaffinity(0) == before


def test_core_shares_are_equal_and_the_rest_stays_idle() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert core_shares(1) == [tuple(cores)]
    sizes = {
        len(share)
        for count in range(1, len(cores) + 1)
        for share in core_shares(count)
        if count > len(cores) // 2
    }
    assert sizes == {1} or len(cores) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_ends_its_runs(tmp_path: Path, number: signal.Signals) -> None:
    """A run that is asked to end does something first; it is waited for, and no other is
    started.
    """
    polite = (
        "import signal, sys, time, pathlib\n"
        "def end(*_): time.sleep(0.5); pathlib.Path(sys.argv[1], 'ended').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path(sys.argv[1], 'ready').touch()\n"
        "time.sleep(60)"
    )

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        Runner(PLAN, tmp_path, said.append, lambda job: [sys.executable, "-c", polite, str(tmp_path)]).run()
    thread.join()
    assert (tmp_path / "ended").exists()
    assert said[1:] == ["ending 1 run; once more ends at once"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_ray.compare.runner.PATIENCE_S", ((signal.SIGTERM, 0.2), (signal.SIGKILL, 10.0)))
    deaf = (
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    pid = tmp_path / "pid"

    def say(line: str) -> None:
        if "started" in line:
            while not (pid.exists() and pid.read_text()):
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Runner(PLAN, tmp_path, say, lambda job: [sys.executable, "-c", deaf, str(pid)]).run()
    assert not psutil.pid_exists(int(pid.read_text()))
