"""weights.jsonl: what each engine proved of each version, and what a resumed run forgets."""

from __future__ import annotations

import json
import math
from pathlib import Path

from sppo_ray.protocols import PublishedWeights, WeightManifest, WeightReceipt
from sppo_ray.rundir.layout import WEIGHTS
from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.rundir.weights_log import WeightLog, WeightRecord, read_weights
from tests.unit.trainer.test_loop import Run


def published(version: int, *probe: float) -> PublishedWeights:
    manifest = WeightManifest(
        version, ("a", "b"), ((2, 2), (3,)), (0, 16), "float32", 28, f"digest-{version}"
    )
    return PublishedWeights(manifest, None, (1, 2, 3), probe)


def test_a_line_names_every_engine_and_what_it_proved(tmp_path: Path) -> None:
    receipts = [
        WeightReceipt("rollout-0", 5, "digest-5", 2, (-1.0, -2.0), 0.25),
        WeightReceipt("rollout-1", 5, "digest-5", 2, (-1.0, -2.5), 0.5),
    ]
    log = WeightLog(tmp_path)
    log.write(published(5, -1.0, -2.0), receipts, loop_steps=8)
    log.close()
    (row,) = map(json.loads, (tmp_path / WEIGHTS).read_text().splitlines())
    assert (row["version"], row["digest"], row["bytes"], row["loop_steps"]) == (5, "digest-5", 28, 8)
    assert row["engines"] == {
        "rollout-0": {"digest": "digest-5", "loaded": 2, "probe_difference": 0.0, "seconds": 0.25},
        # |-2.5 + 2|
        "rollout-1": {"digest": "digest-5", "loaded": 2, "probe_difference": 0.5, "seconds": 0.5},
    }
    assert read_weights(tmp_path) == {5: WeightRecord(5, "digest-5", (-1.0, -2.0), 8)}


def test_a_version_that_computes_nothing_finite_is_recorded_all_the_same(tmp_path: Path) -> None:
    log = WeightLog(tmp_path)
    log.write(published(1, -1.0, math.nan), [], loop_steps=8)
    log.close()
    first, second = read_weights(tmp_path)[1].probe_logprobs
    assert first == -1.0 and math.isnan(second)


def test_a_run_writes_a_line_a_sync_and_a_resumed_one_forgets_what_it_takes_again(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=3")
    run.train()
    assert list(read_weights(run.path)) == [0, 1, 2, 3]
    state = run.train()  # from the start, as after a loss before the first checkpoint
    assert [json.loads(line)["version"] for line in (run.path / WEIGHTS).read_text().splitlines()] == [
        0,
        1,
        2,
        3,
    ]
    assert [row["policy/version"] for row in read_metrics(run.path)] == [1, 2, 3] and state.step == 3
