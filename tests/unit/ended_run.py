"""A run directory of a finished run for tests: real records of a loop over FAKE workers, made-up
evaluations, and an export without weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sppo_ray.config.loading import dump_config
from sppo_ray.launch.job import write_job
from sppo_ray.rundir.evaluations import write_evaluation
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.summary import Summary
from tests.unit.trainer.test_loop import Run


def ended_run(folder: Path, *overrides: str, accuracies: Sequence[float] = (0.25, 0.5)) -> Path:
    """Two steps of training; evaluation k after 10 k seconds, 100 k samples and 1000 k tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, "--loop.steps=2", *overrides)
    state = run.train()
    run_dir = RunDir(run.path)
    run_dir.write_config(dump_config(run.config))
    run_dir.write_environment()
    write_job(run_dir, run.config)
    for step, accuracy in enumerate(accuracies):
        scores = {
            "source": "running-sum", "num_prompts": 16, "num_responses": 16, "k": 1,
            "accuracy": accuracy, "accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.1,
            "pass_at": {"1": accuracy}, "majority": accuracy, "response_length_mean": 40.0,
        }  # fmt: skip
        spent = {"train_seconds": 10.0 * step, "train_samples": 100 * step, "train_tokens": 1000 * step}
        content = {"step": step, "k": 1, "overall": scores, "by_source": [scores], "critic": {}} | spent
        write_evaluation(run_dir, step, content)
    run_dir.write_summary(
        Summary(
            name=run.config.name,
            status="finished",
            algorithm=run.config.algorithm.type,
            seed=run.config.seed,
            steps=state.step,
            seconds=10.0 * (len(accuracies) - 1),
            samples=state.samples,
            response_tokens=1000,
            initial_accuracy=accuracies[0],
            final_accuracy=accuracies[-1],
            best_accuracy=max(accuracies),
            peak_memory={"learner-0": 2**30},
        )
    )
    for role in ("policy", "critic"):
        directory = run_dir.export / role
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps({"critic_loss": "bce"}))
        (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
        (directory / "model.safetensors").write_bytes(b"no weights")
    return run.path
