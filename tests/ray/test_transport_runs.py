"""Runs of the quickstart that differ in the transport of their weights are bit for bit the same; so
is one that loses an engine in the middle of a broadcast.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.rundir.metrics import read_events
from tests.ray import run_record
from tests.ray.test_exact_resume import TINY, finish
from tests.ray.test_train import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHORT = ["--loop.steps=3", "--checkpoint.every=0"]
PARTS = ("export", "metrics", "trajectories", "evaluations")


def kinds(run_dir: Path) -> list[str]:
    return [row["kind"] for row in read_events(run_dir)]


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("flat") / "run"
    finish(path, *SHORT, "--weight_sync.transport=flat")
    return run_record.record(path)


@pytest.mark.parametrize(
    ("transport", "layout"), [("nccl", "separate"), ("ipc", "separate"), ("ipc", "colocated")]
)
def test_every_transport_makes_the_same_run(
    transport: str, layout: str, flat: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    options = [f"--weight_sync.transport={transport}", f"--cluster.layout={layout}"]
    finish(path, *SHORT, *options, "--weight_sync.chunk_mib=0.1")
    assert "weights-flat" not in kinds(path)
    found = run_record.record(path)
    for part in PARTS:
        assert found[part] == flat[part], part
    # the digests of chunks are not the digest of the buffer; the probes are the learner's
    assert probes_of(found) == probes_of(flat)


def test_an_engine_killed_in_the_middle_of_a_broadcast_leaves_no_trace(
    flat: dict[str, Any], tmp_path: Path
) -> None:
    """The other engine, which waits for the same chunk, pulls the version by flat in that sync. The
    last step begins when the killed engine is back, so it samples and syncs with both.
    """
    path = tmp_path / "run"
    options = ["--weight_sync.transport=nccl", "--rollout.workers=2", "--weight_sync.chunk_mib=0.01"]
    command = [sys.executable, "-m", "tests.ray.killing_driver", str(path), "1:broadcast,1:return"]
    done = subprocess.run([*command, *TINY, *SHORT, *options], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    events = kinds(path)
    assert events.count("worker-lost") == events.count("worker-revived") == 1
    assert "weights-flat" in events and "recovering" not in events
    found = run_record.record(path)
    for part in ("export", "evaluations"):
        assert found[part] == flat[part], part
    samples = found["trajectories"]
    assert {sample["worker"] for sample in samples[3]} == {"rollout-0", "rollout-1"}
    assert without_workers(samples) == without_workers(flat["trajectories"])


def without_workers(steps: dict[int, list[dict[str, Any]]]) -> dict[int, list[dict[str, Any]]]:
    """The samples without the engine's name: `flat` has one engine."""
    return {step: [sample | {"worker": ""} for sample in samples] for step, samples in steps.items()}


def probes_of(record: dict[str, Any]) -> dict[int, tuple[float, ...]]:
    return {version: one.probe_logprobs for version, one in record["weights"].items()}
