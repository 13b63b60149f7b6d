"""An exported critic with real processes: `sppo-ray calibrate`, its map, and a warm start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sppo_ray.evaluation.calibration import HELD_OUT, SEEN
from sppo_ray.models.exported_critic import ExportedCritic
from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.rundir.trajectories import read_step

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 280
SMALL = [
    "--data.prompts_per_step=32",
    "--data.minibatch_size=16",
    "--data.held_out.0.size=24",
    "--critic.warmup_steps=1",
    "--eval.every=0",
    "--logging.progress=plain",
]


def sppo_ray(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sppo_ray", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ
    )


def finished(*arguments: str) -> str:
    done = sppo_ray(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps, evaluated at the start and the end."""
    path = tmp_path_factory.mktemp("calibrate") / "run"
    finished("train", "quickstart", "--run-dir", str(path), "--loop.steps=2", *SMALL)
    return path


def critic_inputs(run_dir: Path, step: int) -> list[dict[str, Any]]:
    return read_step(run_dir, step).to_pylist()


def test_a_run_tells_seen_from_held_out_and_leaves_card_and_plot(run_dir: Path) -> None:
    start, end = (row for row in read_metrics(run_dir) if "eval/value/brier" in row)
    assert "train/value/brier" not in start  # nothing was trained on yet
    rows = [row for step in (1, 2) for row in critic_inputs(run_dir, step)]
    assert end["train/value/count"] == len(rows) == 64
    brier = sum((row["value"] - row["reward"]) ** 2 for row in rows) / 64
    assert end["train/value/brier"] == pytest.approx(brier)
    assert (run_dir / "reliability.png").read_bytes().startswith(b"\x89PNG")
    card = json.loads((run_dir / "export" / "critic" / "calibration.json").read_text())
    assert card["held_out"]["figures"]["brier"] == pytest.approx(end["eval/value/brier"])
    assert (card["held_out"]["count"], card["seen"]["count"], card["policy"]["step"]) == (24, 64, 2)
    assert (run_dir / "export" / "critic" / "README.md").stat().st_size > 1000


def test_calibrate_measures_seen_and_held_out_prompts(run_dir: Path) -> None:
    printed = finished("calibrate", str(run_dir), "-k", "3", "--prompts", "20", "--bins", "5")
    assert "brier" in printed and "solve rate" in printed
    content = json.loads((run_dir / "calibration" / "calibration.json").read_text())
    assert list(content["sets"]) == [HELD_OUT, SEEN]
    for measured in content["sets"].values():
        assert (measured["count"], measured["responses_a_prompt"], measured["reward_errors"]) == (20, 3, 0)
        assert sum(row["count"] for row in measured["bins"]) == 20 and len(measured["bins"]) == 5
        low, high = measured["intervals"]["brier"]
        assert low <= measured["figures"]["brier"] <= high
        # avg@3 of 20 prompts: a multiple of 1 / 60, and the base of the quickstart solves some and
        # fails some
        assert round(measured["solve_rate"] * 60, 6) == round(measured["solve_rate"] * 60) not in (0, 60)
    assert (run_dir / "calibration" / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_a_terminated_calibration_writes_nothing(run_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sppo_ray", "calibrate", str(run_dir), "-k", "500"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert any("responses graded" in line for line in process.stderr)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (143, "terminated: nothing was written")
    assert not list(tmp_path.iterdir())


def test_prompts_that_the_run_trained_on_do_not_pass_for_held_out(run_dir: Path) -> None:
    done = sppo_ray(
        "calibrate", str(run_dir), "--data", "running-sum:size=2000,max_operands=8", "--prompts", "2000"
    )
    assert done.returncode == 2 and "--data: the run trained on" in done.stderr and "--seen" in done.stderr, (
        done.stderr
    )
    assert "of these 2000 prompts, e.g. running-sum" in done.stderr


def test_the_map_of_a_run_gives_the_exported_critics_values(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.parquet"
    finished("map", str(run_dir), "--data", "running-sum:size=50,seed=1000000", "--out", str(out))
    rows = pq.read_table(out).to_pylist()
    critic = ExportedCritic(run_dir / "export" / "critic")
    ids = [tuple(critic.tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]) for row in rows]
    assert [row["value"] for row in rows] == pytest.approx([v.value for v in critic.values(ids)], abs=1e-5)


def test_a_warm_started_critic_begins_with_the_exported_values(run_dir: Path, tmp_path: Path) -> None:
    """The actor's values at the first dispatch, before any update, against plain forwards of the
    export.
    """
    warm = tmp_path / "warm"
    more = ["--critic.warmup_steps=0", "--eval.at_start=false", f"--critic.model={run_dir}"]
    finished("train", "quickstart", "--run-dir", str(warm), "--loop.steps=1", *SMALL, *more)
    rows = critic_inputs(warm, 1)
    expected = ExportedCritic(run_dir / "export" / "critic").values(
        [tuple(row["critic_prompt_ids"]) for row in rows]
    )
    assert [row["value"] for row in rows] == pytest.approx([value.value for value in expected], abs=1e-5)
    assert len({row["value"] for row in rows}) > 5  # and it has learned to tell prompts apart


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--data.prompt_suffix=++", "learned on prompts with data.prompt_suffix null, this run has '++'"),
        ("--critic.model=/nowhere/critic", "/nowhere/critic"),
    ],
)
def test_a_warm_start_that_does_not_fit_is_refused(
    run_dir: Path, tmp_path: Path, change: str, message: str
) -> None:
    model = f"--critic.model={run_dir}/export/critic"
    done = sppo_ray(
        "train", "quickstart", "--run-dir", str(tmp_path / "warm"), "--loop.steps=2", *SMALL, model, change
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr, done.stderr
