"""The peak memory of a worker, in new processes that allocate a known amount."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
MIB = 2**20


def run(code: str) -> list[int]:
    command = [sys.executable, "-c", f"from actors.memory import peak_bytes\n{code}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    return [int(word) for word in done.stdout.split()]


def test_the_peak_stays_after_the_memory_is_given_back() -> None:
    before, after = run(
        "a = peak_bytes('cpu'); block = bytearray(64 * 2**20); del block; print(a, peak_bytes('cpu'))"
    )
    assert 5 * MIB < before < 200 * MIB
    assert 60 * MIB < after - before < 80 * MIB


def test_processes_below_it_count() -> None:
    child = "import sys; block = bytearray(64 * 2**20); print(flush=True); sys.stdin.read()"
    before, with_child, without = run(
        "import subprocess, sys\n"
        "a = peak_bytes('cpu')\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=-1, stdout=-1)\n"
        "child.stdout.readline()\n"
        "b = peak_bytes('cpu')\n"
        "child.communicate()\n"
        "print(a, b, peak_bytes('cpu'))"
    )
    assert with_child - before > 64 * MIB
    assert without - before < 20 * MIB
