"""A comparison of two arms of the quickstart for a few seconds each, with real Ray, vLLM and
DeepSpeed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sppo_ray.compare import report_from

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
BUDGET_S = 4.0
SMALL = [
    "--data.prompts_per_step=16",
    "--data.minibatch_size=8",
    "--data.held_out.0.size=16",
    "--critic.warmup_steps=1",
    "--eval.every_s=1",
]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(its folder, what it printed)"""
    out = tmp_path_factory.mktemp("compare") / "out"
    arms = ["--arms", "sppo,reinforce", "--baseline", "reinforce", "--targets", "0.01,0.99"]
    command = [
        sys.executable,
        "-m",
        "sppo_ray",
        "compare",
        "quickstart",
        *arms,
        "--seeds",
        "1",
        "--budget",
        str(BUDGET_S),
    ]
    done = subprocess.run(
        [*command, "--out", str(out), *SMALL], cwd=REPOSITORY, capture_output=True, text=True, timeout=280
    )
    logs = "".join(f"\n{path.name}\n{path.read_text()}" for path in out.glob("logs/*"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    return out, done.stdout


def test_the_figures_are_those_of_the_run_directories(comparison: tuple[Path, str]) -> None:
    out, _ = comparison
    report = json.loads((out / "report.json").read_text())
    assert [arm["name"] for arm in report["arms"]] == ["sppo", "reinforce"]
    for arm in report["arms"]:
        (run,) = arm["runs"]
        path = out / "runs" / f"{arm['name']}-seed1"
        summary = json.loads((path / "summary.json").read_text())
        evaluations = [json.loads(file.read_text()) for file in sorted((path / "evaluations").glob("*.json"))]
        assert summary["algorithm"] == arm["name"] and summary["status"] == "finished"
        assert summary["seconds"] >= BUDGET_S
        assert (run["steps"], run["samples"], run["tokens"]) == (
            summary["steps"],
            summary["samples"],
            summary["response_tokens"],
        )
        assert [point["accuracy"] for point in run["curve"]] == [
            e["overall"]["accuracy"] for e in evaluations
        ]
        assert run["initial_accuracy"] == summary["initial_accuracy"]
        assert run["last_accuracy"] == summary["final_accuracy"]
        # The whole run's tokens were spent when the last evaluation was made.
        assert run["curve"][-1]["tokens"] == summary["response_tokens"]
        assert run["curve"][0] == {
            "seconds": 0.0,
            "samples": 0,
            "tokens": 0,
            "accuracy": summary["initial_accuracy"],
        }
        assert len(run["curve"]) >= 3


def test_time_and_memory_are_accounted_for(comparison: tuple[Path, str]) -> None:
    report = json.loads((comparison[0] / "report.json").read_text())
    sppo, reinforce = report["arms"]
    assert sppo["peak_memory"].keys() >= {"rollout", "learner", "critic"}
    assert "critic" not in reinforce["peak_memory"]
    # a Python process with torch
    assert all(size > 50 * 2**20 for size in sppo["peak_memory"].values())
    for arm in report["arms"]:
        # The stages hold the first weight sync too, which is before the clock of the training
        # starts.
        assert 0.9 * arm["seconds"]["mean"] < sum(arm["stages"].values()) < arm["seconds"]["mean"] + 15


def test_targets(comparison: tuple[Path, str]) -> None:
    report = json.loads((comparison[0] / "report.json").read_text())
    for arm in report["arms"]:
        low, high = arm["targets"]
        assert (low["reached"], low["seconds"]["mean"]) == (1, 0.0)  # the base is there already
        assert (high["reached"], high["seconds"]["mean"], high["seconds"]["censored"]) == (0, BUDGET_S, 1)


def test_what_differs_is_in_the_settings_and_the_report(comparison: tuple[Path, str]) -> None:
    out, printed = comparison
    settings = [
        yaml.safe_load((out / "runs" / f"{arm}-seed1" / "config.yaml").read_text())
        for arm in ("sppo", "reinforce")
    ]
    changed = {key for key in settings[0] if settings[0][key] != settings[1][key]}
    assert changed == {"algorithm"}
    text = (out / "report.md").read_text()
    assert "`algorithm.type=reinforce`" in text and "accuracy-tokens.png" in text
    assert (
        (out / "accuracy-time.png").exists()
        and (out / "memory.png").exists()
        and (out / "stages.png").exists()
    )
    assert "sppo, seed 1: accuracy" in printed and "| **reinforce** | 1 of 1 |" in printed


def test_a_finished_comparison_is_not_run_again(comparison: tuple[Path, str]) -> None:
    out, _ = comparison
    command = [sys.executable, "-m", "sppo_ray", "compare", "--out", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs are finished already" in done.stdout and "started" not in done.stdout
    assert report_from(out, baseline="sppo").plan.baseline == "sppo"
