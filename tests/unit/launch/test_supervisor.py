"""`sppo-ray train --restarts N` with real processes in place of the run: which exits are
restarted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sppo_ray.launch.supervisor import Supervisor, train_command

# A process in place of a run: it notes how it was started, takes a step and ends as the next word
# of `plan` says.
RUN = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
starts = folder / "starts"
count = len(starts.read_text().split()) if starts.exists() else 0
starts.open("a").write(("resumed" if "--resume" in sys.argv else "new") + "\\n")
(folder / "config.yaml").touch()
word = json.loads(sys.argv[2])[count]
step = count + 1 if word.endswith("+") else 0
(folder / "status.json").write_text(json.dumps({"state": {"step": step}}))
word = word.rstrip("+")
if word == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    (folder / "up").write_text(str(os.getpid()))
    time.sleep(60)
os.kill(os.getpid(), signal.SIGKILL) if word == "killed" else sys.exit(int(word))
"""


class Case:
    def __init__(self, folder: Path, plan: list[str], restarts: int) -> None:
        self.folder = folder
        words = [sys.executable, "-c", RUN, str(folder), json.dumps(plan)]
        self.supervisor = Supervisor(
            lambda resume: [*words, "--resume"] if resume else words,
            folder,
            restarts=restarts,
            backoff_s=0.01,
        )

    @property
    def starts(self) -> list[str]:
        return (self.folder / "starts").read_text().split()


@pytest.mark.parametrize("code", [0, 2, 4, 130, 143])
def test_an_end_of_its_own_is_the_end(tmp_path: Path, code: int) -> None:
    case = Case(tmp_path, [str(code)], restarts=3)
    assert case.supervisor.run(resume=False) == code
    assert case.starts == ["new"]


def test_a_crash_is_resumed_until_it_ends_well(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # each gets a step further: the one restart comes back
    case = Case(tmp_path, ["killed+", "1+", "3+", "0+"], restarts=1)
    assert case.supervisor.run(resume=False) == 0
    assert case.starts == ["new", "resumed", "resumed", "resumed"]
    told = capfd.readouterr().err.splitlines()
    assert told[0] == (
        "sppo-ray: the run was killed by SIGKILL after step 1: it is started again (restart 1 of 1 without "
        "progress)"
    )
    assert "ended with exit code 3 after step 3" in told[2]


def test_without_progress_it_gives_up(tmp_path: Path) -> None:
    case = Case(tmp_path, ["killed"] * 9, restarts=2)
    assert case.supervisor.run(resume=False) == 128 + signal.SIGKILL
    assert len(case.starts) == 1 + 2


def test_signals_are_passed_on_and_nothing_is_started_again(tmp_path: Path) -> None:
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 0)):
        folder = tmp_path / number.name
        process = supervised(folder, ["wait"])
        os.kill(process.pid, number)
        assert process.wait(timeout=30) == code
        assert (folder / "starts").read_text().split() == ["new"]


def test_the_run_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    process = supervised(tmp_path / "run", ["wait"])
    run = psutil.Process(int((tmp_path / "run" / "up").read_text()))
    process.kill()
    assert psutil.wait_procs([run], timeout=10)[1] == []


def supervised(folder: Path, plan: list[str]) -> subprocess.Popen[bytes]:
    """A supervisor in a process of its own, its run under way."""
    folder.mkdir()
    code = (
        "import sys, pathlib; from tests.unit.launch.test_supervisor import Case;"
        f"sys.exit(Case(pathlib.Path({str(folder)!r}), {plan!r}, restarts=3).supervisor.run(resume=False))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3])
    deadline = time.monotonic() + 30
    while not (folder / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def test_the_command_of_a_run(tmp_path: Path) -> None:
    command = train_command(["quickstart", "--loop.steps=5", "--seed=3"], tmp_path)
    words = [
        sys.executable,
        "-m",
        "sppo_ray",
        "train",
        "quickstart",
        "--loop.steps=5",
        "--seed=3",
        "--run-dir",
        str(tmp_path),
    ]
    assert command(False) == words
    assert command(True) == [*words, "--resume"]
