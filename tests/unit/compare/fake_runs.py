"""Run directories as a training run leaves them, with made-up numbers: what the report of a
comparison reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sppo_ray.compare.plan import Job
from sppo_ray.compare.runner import run_path
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.summary import Summary

Evaluation = tuple[float, float]  # (seconds of training, held-out accuracy)

ENVIRONMENT = {
    "python": "3.11.0",
    "cpu": "a CPU",
    "cpu_count": 2,
    "memory_gib": 8.0,
    "gpus": [],
    "packages": {"torch": "2.13.0", "numpy": "2.0"},
    "commit": "0123456789abcdef",
    "modified": False,
}


def write_run(
    out: Path,
    job: Job,
    curve: Sequence[Evaluation],
    *,
    samples_per_second: float = 10.0,
    tokens_per_second: float = 100.0,
    status: str = "finished",
    peak_memory: Mapping[str, int] | None = None,
    stages: Mapping[str, float] | None = None,
) -> Path:
    """A run whose step k ends with evaluation k; each step spends `stages` seconds."""
    run = RunDir(run_path(out, job))
    rows = []
    for step, (seconds, accuracy) in enumerate(curve):
        spent = {"samples": int(seconds * samples_per_second), "tokens": int(seconds * tokens_per_second)}
        overall = {"accuracy": accuracy, "accuracy_low": accuracy - 0.05, "accuracy_high": accuracy + 0.05}
        content = {
            "train_seconds": seconds,
            "train_samples": spent["samples"],
            "train_tokens": spent["tokens"],
            "overall": overall,
        }
        run.write_json(f"evaluations/step-{step:06d}.json", content)
        if step:
            rows.append(
                {"step": step} | {f"seconds/{name}": figure for name, figure in (stages or {}).items()}
            )
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.write_json("environment.json", ENVIRONMENT)
    last_seconds, last_accuracy = curve[-1]
    run.write_summary(
        Summary(
            name="made-up",
            status=status,  # type: ignore[arg-type]
            algorithm=job.arm,
            seed=job.seed,
            steps=len(curve) - 1,
            seconds=last_seconds,
            samples=int(last_seconds * samples_per_second),
            response_tokens=int(last_seconds * tokens_per_second),
            initial_accuracy=curve[0][1],
            final_accuracy=last_accuracy,
            best_accuracy=max(accuracy for _, accuracy in curve),
            policy_version=len(curve) - 1,
            critic_version=0,
            reward_errors=0,
            restarts=0,
            peak_memory=peak_memory or {},
        )
    )
    return run.path
