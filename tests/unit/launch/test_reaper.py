"""The reaper ends what a local Ray cluster leaves behind, with FAKE processes. Ray's own are in
tests/ray.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[3]
# A driver with a child that ignores signals, a frozen one, one with a title, as Ray's agents have,
# and the mark where the title would be written, and a grandchild in a session of its own.
DRIVER = """
import os, signal, subprocess, sys, time
from sppo_ray.launch.cluster import _reaped
from sppo_ray.launch.reaper import MARK
sleep = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"]
nest = f"import subprocess, time; print(subprocess.Popen({sleep!r}).pid, flush=True); time.sleep(300)"
title = "import setproctitle, time; setproctitle.setproctitle('title'); print(flush=True); time.sleep(300)"
titled = [sys.executable, "-c", title]
nested = [sys.executable, "-c", nest]
with _reaped():
    stubborn, frozen = subprocess.Popen(sleep), subprocess.Popen(sleep)
    parent = subprocess.Popen(nested, stdout=subprocess.PIPE, start_new_session=True)
    agent = subprocess.Popen(titled, stdout=subprocess.PIPE, env={MARK: os.environ[MARK]} | os.environ)
    agent.stdout.readline()
    os.kill(frozen.pid, signal.SIGSTOP)
    print(stubborn.pid, frozen.pid, agent.pid, parent.pid, parent.stdout.readline().decode().strip(), flush=True)
    time.sleep(300 if sys.argv[1] == "wait" else 0)
print("over", flush=True)
"""  # noqa: E501


def driver(how: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, how], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    def is_alive(process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [process for process in processes if is_alive(process)]


def test_nothing_outlives_a_driver_that_is_killed() -> None:
    process, left = driver("wait")
    unrelated = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    assert len(alive(left)) == 5
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while alive(left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(left) == []
    assert unrelated.poll() is None
    unrelated.kill()
    unrelated.wait()


def test_a_clean_end_waits_until_nothing_is_left() -> None:
    process, left = driver("end")
    assert process.communicate(timeout=60)[0] == "over\n"
    assert (process.returncode, alive(left)) == (0, [])
