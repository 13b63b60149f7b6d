"""Runs of the quickstart that differ in the transport of their weights are bit for bit the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sppo_ray.rundir.metrics import read_events
from tests.ray import run_record
from tests.ray.test_exact_resume import finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHORT = ["--loop.steps=3", "--checkpoint.every=0", "--weight_sync.chunk_mib=0.1"]


def run(run_dir: Path, transport: str) -> dict[str, Any]:
    finish(run_dir, *SHORT, f"--weight_sync.transport={transport}")
    assert "weights-flat" not in {row["kind"] for row in read_events(run_dir)}
    return run_record.record(run_dir)


def test_every_transport_makes_the_same_run(tmp_path: Path) -> None:
    flat = run(tmp_path / "flat", "flat")
    for transport in ("nccl", "ipc"):
        found = run(tmp_path / transport, transport)
        for part in ("export", "metrics", "trajectories", "evaluations"):
            assert found[part] == flat[part], (transport, part)
        # the digests of chunks are not the digest of the buffer; the probes are the learner's
        assert probes_of(found) == probes_of(flat)


def probes_of(record: dict[str, Any]) -> dict[int, tuple[float, ...]]:
    return {version: one.probe_logprobs for version, one in record["weights"].items()}
