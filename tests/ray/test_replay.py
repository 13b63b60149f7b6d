"""Replays of real runs from the command line, with real learner and critic ranks and no engine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.rundir.trajectories import read_step

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    "--data.prompts_per_step=16",
    "--data.minibatch_size=8",
    "--data.held_out.0.size=8",
    "--critic.warmup_steps=1",
    "--checkpoint.every=1",
    "--checkpoint.keep=3",
    "--checkpoint.export=false",
    "--eval.every=0",
    "--eval.at_start=false",
    "--rollout.max_response_tokens=40",
    "--logging.progress=plain",
]
TIMEOUT_S = 400


def sppo_ray(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sppo_ray", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ
    )


def train(run_dir: Path, steps: int, *more: str) -> None:
    done = sppo_ray("train", "quickstart", "--run-dir", str(run_dir), f"--loop.steps={steps}", *SMALL, *more)
    assert done.returncode == 0, done.stdout + done.stderr


def replay(run_dir: Path, step: int, *more: str, code: int = 0) -> dict[str, Any]:
    done = sppo_ray("replay", str(run_dir), "--step", str(step), "--json", *more)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def quantities(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {quantity["name"]: quantity for quantity in report["quantities"]}


def differing(report: dict[str, Any]) -> list[str]:
    return [quantity["name"] for quantity in report["quantities"] if quantity["verdict"] == "differs"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three synchronous steps of sppo; in the first of them the critic learns alone."""
    run_dir = tmp_path_factory.mktemp("replay") / "run"
    train(run_dir, 3)
    return run_dir


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(recorded, tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard"))


@pytest.mark.slow
def test_a_step_matches_bit_for_bit(recorded: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in recorded.rglob("*")}
    report = replay(recorded, 3, "--exact")
    assert (
        report["matches"] and report["bit_for_bit"] and report["start"] == {"from": "step-000002", "step": 2}
    )
    found = quantities(report)
    row = next(row for row in read_metrics(recorded) if row["step"] == 3 and "policy/version" in row)
    for name in ("policy/loss", "policy/grad_norm", "critic/loss", "critic/grad_norm"):
        assert found[name]["recorded"] == found[name]["rederived"] == row[name] != 0
    assert found["values"]["count"] == found["advantages"]["count"] == 16
    # The engine's log-probs against the learner's: equal up to the rounding of float32 kernels.
    tokens = sum(len(ids) for ids in read_step(recorded, 3)["response_ids"].to_pylist())
    assert found["log-probs"]["count"] == tokens and found["log-probs"]["largest_difference"] < 1e-4
    assert found["weights after the step"]["verdict"] == "equal"
    assert {path: path.stat().st_mtime_ns for path in recorded.rglob("*")} == before, "a replay only reads"


@pytest.mark.slow
def test_a_changed_reward_and_a_changed_log_prob_are_named(copy: Path) -> None:
    table = read_step(copy, 3)
    rows = table.to_pylist()
    rows[5]["reward"] = 1.0 - rows[5]["reward"]
    rows[11]["response_logprobs"][2] -= 0.05
    pq.write_table(
        pa.Table.from_pylist(rows, schema=table.schema), copy / "trajectories" / "step-000003.parquet"
    )
    report = replay(copy, 3, code=1)
    found = quantities(report)
    assert found["starting weights"]["verdict"] == "equal"
    name = rows[11]["request_id"]
    assert (found["log-probs"]["where"], found["log-probs"]["differing"]) == (f"{name}, token 2", 1)
    assert found["log-probs"]["largest_difference"] == pytest.approx(0.05, abs=1e-3)
    assert found["shaped rewards"]["where"] == found["advantages"]["where"] == rows[5]["request_id"]
    assert (
        found["shaped rewards"]["rederived"] == rows[5]["reward"] == 1.0 - found["shaped rewards"]["recorded"]
    )
    # The learner's ratios start from the log-probs, so the update is another one too.
    assert found["weights after the step"]["verdict"] != "equal"
    assert differing(report)[:3] == ["log-probs", "shaped rewards", "advantages"]


@pytest.mark.slow
def test_a_changed_weight_in_the_checkpoint_is_named(copy: Path) -> None:
    checkpoint = copy / "checkpoints" / "step-000002"
    file = checkpoint / "learner" / "state" / "mp_rank_00_model_states.pt"
    state = torch.load(file, weights_only=False)
    name = next(name for name in state["module"] if name.endswith("mlp.down_proj.weight"))
    state["module"][name].view(-1)[7] += 0.01
    torch.save(state, file)
    # A bit that flips on the disk fails the manifest's checksum: that checkpoint is passed over,
    # and nothing differs.
    report = replay(copy, 3)
    assert report["start"]["from"] == "step-000001" and report["bit_for_bit"]
    # One that was changed on purpose, checksums and all, is not the version that the engines
    # proved.
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    entry = manifest["files"][str(file.relative_to(checkpoint))]
    entry |= {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    manifest["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    report = replay(copy, 3, code=1)
    assert report["start"]["from"] == "step-000002"
    assert differing(report)[0] == "starting weights" and report["first_wrong_version"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        [
            "--algorithm.type=ppo",
            "--algorithm.lam=0.95",
            "--learner.ranks=2",
            "--critic.ranks=2",
            "--rollout.cpus_per_worker=0.25",
        ],
        [
            "--algorithm.old_logprobs=learner",
            "--algorithm.kl.coefficient=0.05",
            "--loop.max_staleness=1",
            "--loop.minibatch_order=finish",
        ],
        [
            "--algorithm.type=grpo",
            "--data.prompts_per_step=4",
            "--data.samples_per_prompt=4",
            "--algorithm.dynamic_sampling.max_rounds=3",
        ],
        ["--algorithm.type=remax", "--learner.optimizer.schedule=linear", "--algorithm.ratio=sequence"],
    ],
    ids=["ppo-two-ranks", "stale-recomputed-kl-finish", "grpo-dynamic", "remax-linear-gspo"],
)
def test_every_kind_of_run_matches_bit_for_bit(tmp_path: Path, settings: list[str]) -> None:
    run_dir = tmp_path / "run"
    train(run_dir, 4, *settings)
    report = replay(run_dir, 4, "--exact")
    assert report["bit_for_bit"], report
    found = quantities(report)
    assert found["log-probs"]["largest_difference"] < 1e-4
    if "--loop.max_staleness=1" in settings:
        # before the sync under which step 4's prompts were dispatched and valued
        assert report["start"]["step"] == 2
    if "--algorithm.type=ppo" in settings:
        assert (
            found["token values"]["count"] == found["returns"]["count"] == found["advantages"]["count"] > 100
        )
