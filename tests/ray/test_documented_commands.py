"""Runs every command of README.md and of the first four pages, in order, with few steps."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.api.conftest import free_port
from tests.documentation import PAGES, REPOSITORY, blocks, require_documented_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # several trainings a page
FEW = "--loop.steps=2 --eval.prompts=8"
FEWER = {"train": FEW, "eval": "--limit 8", "compare": f"--seeds 1 --budget 4 {FEW}"}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_runs(page: str, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        for command in block.commands:
            _run(command, tmp_path)
    if page == "docs/index.md":
        require_documented_metrics(tmp_path / "runs" / "first")


def _run(command: str, folder: Path) -> None:
    command = command.removeprefix(".venv/bin/")
    words = command.split()
    if words[:2] == ["make", "test"]:
        return  # the suite that this test belongs to
    if words[:2] == ["make", "train"]:  # what the target runs, without making the environment
        where = next((word.partition("=")[2] for word in words if word.startswith("RUN_DIR=")), "runs/made")
        command = f"sppo-ray train quickstart --run-dir {where}"
        words = command.split()
    if words[:2] == ["sppo-ray", "serve"]:
        return _serve(words, folder)
    if words[0] == "sppo-ray" and "--dry-run" not in words:
        command = f"{command} {FEWER.get(words[1], '')}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def _serve(words: list[str], folder: Path) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}/healthz"
    process = subprocess.Popen([*words, "--port", str(port)], cwd=folder, env=_environment())
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    assert answer.status == 200
                return
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, shlex.join(words)
                time.sleep(0.3)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    keep = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return keep | {"PATH": path, "PYTHONPATH": str(REPOSITORY)}
