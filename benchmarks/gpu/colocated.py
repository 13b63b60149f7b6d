"""Section `colocated`: a run whose roles take turns."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.common import Found, at_most, on_gpu, require
from benchmarks.gpu_smoke import Setup


def colocated(setup: Setup) -> Found:
    """Three steps of the quickstart with engine, learner and critic in turns on one device; the
    engine copies weights out of the learner's memory.
    """
    import deepspeed  # noqa: F401
    import ray  # noqa: F401
    import vllm  # noqa: F401

    require(setup)
    run_dir = Path(tempfile.mkdtemp()) / "run"
    settings = ["cluster.layout=colocated", "loop.steps=3", "eval.every=0", "checkpoint.every=2"]
    settings += [
        "weight_sync.transport=ipc",
        f"device={setup.device}",
        "data.prompts_per_step=64",
        "data.minibatch_size=32",
    ]
    if on_gpu(setup):
        shares = ("rollout.gpus_per_worker=1", "learner.gpus_per_rank=1", "critic.gpus_per_rank=1")
        settings += [*shares, "rollout.kv_cache_gib=2", "cluster.local_cpus=8"]
    command = [sys.executable, "-m", "sppo_ray", "train", "quickstart", "--run-dir", str(run_dir)]
    yield "a run of three steps"
    done = subprocess.run(
        [*command, *(f"--{setting}" for setting in settings)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in steps if "seconds/turn" in row]
    for row in steps:
        stages = ("generate-wait", "turn", "update", "critic-wait", "sync")
        yield {"step": row["step"]} | {stage: row[f"seconds/{stage}"] for stage in stages}
    yield at_most("steps that are missing", 0, 3 - len(steps))
    events = [json.loads(line)["kind"] for line in (run_dir / "events.jsonl").read_text().splitlines()]
    yield at_most("weight syncs that went by flat instead of ipc", 0, events.count("weights-flat"))
    # an engine that had kept stale memory would differ by much more, or be NaN
    limit = 0.2 if on_gpu(setup) else 1e-3
    worst = max(row["mismatch/first_batch_difference"] for row in steps)
    yield at_most("log-prob difference of engine and learner after each sleep", limit, worst)
