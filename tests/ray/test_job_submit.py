"""The same command through `ray job submit` against a running head, as on a cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_head import BIN, ray_head

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    "--data.prompts_per_step=32",
    "--data.minibatch_size=16",
    "--data.held_out.0.size=16",
    "--loop.steps=2",
    "--critic.warmup_steps=1",
]


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    with ray_head() as found:
        yield found


@pytest.mark.timeout(600)
def test_a_submitted_job_trains(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = head
    run_dir = tmp_path / "run"
    train = ["python", "-m", "sppo_ray", "train", "quickstart", "--run-dir", str(run_dir), *SMALL]
    submit = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", ".", "--", *train]
    done = subprocess.run(submit, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    # The log of a job is no terminal: one plain line a step.
    assert "step 2/2  reward" in done.stdout
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["samples"]) == ("finished", 2, 64)
