"""The main job end to end, as a user runs it: the command line, real Ray, vLLM, DeepSpeed and verifier processes.

The quickstart with few prompts a step, so that a run takes seconds; what it learns is the benchmark's matter.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from sppo_ray.data.trajectory_log import read_step
from sppo_ray.trainer.metrics import read_events, read_metrics
from sppo_ray.types import RolloutRequest
from tests.ray.engine_models import generate, start_engine

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    "--data.prompts_per_step=32",
    "--data.minibatch_size=16",
    "--data.held_out.0.size=32",
    "--critic.warmup_steps=1",
    "--checkpoint.every=2",
    "--eval.every=2",
    "--logging.progress=plain",
]
TIMEOUT_S = 280


def command(run_dir: Path, steps: int, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "sppo_ray",
        "train",
        "quickstart",
        "--run-dir",
        str(run_dir),
        f"--loop.steps={steps}",
        *SMALL,
        *more,
    ]


def train(run_dir: Path, steps: int, *more: str) -> str:
    done = subprocess.run(command(run_dir, steps, *more), cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def exported_weights(run_dir: Path) -> dict[str, str]:
    files = sorted((run_dir / "export").rglob("*.safetensors"))
    return {str(f.relative_to(run_dir)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if (run_dir / "metrics.jsonl").exists() and any(row["step"] >= step for row in read_metrics(run_dir)):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached: {process.communicate()}")


def wait_for_event(run_dir: Path, kind: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if any(event["kind"] == kind for event in read_events(run_dir)):
            return
        time.sleep(0.05)
    raise AssertionError(f"no {kind} event: {read_events(run_dir)}")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five uninterrupted synchronous steps."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    printed = train(run_dir, 5, "--seed", "3")
    assert "finished after step 5" in printed
    return run_dir


def test_a_run_leaves_everything_that_it_promises(whole_run: Path) -> None:
    summary = json.loads((whole_run / "summary.json").read_text())
    # 5 steps of 32 samples; the critic learned in each (2 minibatches a step).
    assert (summary["algorithm"], summary["seed"], summary["steps"], summary["samples"]) == ("sppo", 3, 5, 160)
    assert (summary["policy_version"], summary["critic_version"], summary["restarts"]) == (5, 10, 0)
    assert 0 < summary["initial_accuracy"] < 1 and 0 < summary["final_accuracy"] < 1
    for name in ("config.yaml", "environment.json", "curve.png", "events.jsonl", "evaluations/step-000004.json"):
        assert (whole_run / name).stat().st_size > 0
    rows = {row["step"]: row for row in read_metrics(whole_run) if "reward/mean" in row}
    assert sorted(rows) == [1, 2, 3, 4, 5]
    assert all(row["staleness/max"] == 0 for row in rows.values())
    # float32: the engine's log-probs are the learner's up to rounding, at every step.
    assert all(rows[step]["mismatch/logprob_difference_max"] < 1e-4 for step in (2, 3, 4, 5))
    assert all(row["sync/probe_difference_max"] < 1e-4 for row in rows.values())


def test_the_trajectory_log_agrees_with_itself(whole_run: Path) -> None:
    rows = read_step(whole_run, 2).to_pylist()
    assert len(rows) == 32 and len({row["prompt_id"] for row in rows}) == 32
    for row in rows:
        assert row["advantage"] == pytest.approx(row["reward"] - row["value"], abs=1e-12)
        assert len(row["response_ids"]) == len(row["response_logprobs"])
        boxes = re.findall(r"\\boxed\{(\d+)\}", row["response_text"])
        assert row["reward"] == float(bool(boxes) and int(boxes[-1]) == int(row["ground_truth"]))
        assert row["policy_version"] == row["policy_version_end"] == 1


def test_the_export_loads_in_plain_transformers(whole_run: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    rows = read_step(whole_run, 5).to_pylist()
    policy = AutoModelForCausalLM.from_pretrained(whole_run / "export" / "policy")
    tokenizer = AutoTokenizer.from_pretrained(whole_run / "export" / "policy")
    assert tokenizer(rows[0]["prompt_text"], add_special_tokens=False)["input_ids"] == rows[0]["prompt_ids"]
    ids = torch.tensor([rows[0]["prompt_ids"] + rows[0]["response_ids"]])
    assert torch.isfinite(policy(ids).logits).all()
    critic = AutoModelForSequenceClassification.from_pretrained(whole_run / "export" / "critic")
    with torch.no_grad():
        value = torch.sigmoid(critic(torch.tensor([rows[0]["prompt_ids"]])).logits.squeeze())
    # Two more critic updates were made after the value was logged, so they are near and not equal.
    assert abs(float(value) - rows[0]["value"]) < 0.2


def test_the_export_loads_in_vllm_and_says_the_same_as_transformers(whole_run: Path, ray_cluster: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    export = whole_run / "export" / "policy"
    engine = start_engine("rollout-export", export, context=96)
    prompt = tuple(read_step(whole_run, 5).to_pylist()[0]["prompt_ids"])
    ray_cluster.get(engine.ready.remote(), timeout=240)
    (greedy,) = generate(engine, [RolloutRequest("r", "p", prompt, seed=0)], temperature=0.0, max_tokens=24, stop=())
    ray_cluster.kill(engine)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(export)(torch.tensor([prompt + greedy.response_ids])).logits[0]
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == list(greedy.response_ids)


def test_a_resume_with_other_settings_is_refused_before_anything_is_touched(whole_run: Path) -> None:
    before = (whole_run / "config.yaml").read_text()
    more = ["--seed", "3", "--resume", "--learner.optimizer.lr=0.1"]
    done = subprocess.run(command(whole_run, 5, *more), cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 2
    assert "learner.optimizer.lr: 0.0005 then, 0.1 now" in done.stderr
    assert (whole_run / "config.yaml").read_text() == before


def test_kill_and_resume_equals_the_uninterrupted_run(whole_run: Path, tmp_path: Path) -> None:
    """SIGKILL of the driver in step 4, then --resume to step 5: equal weights, hash for hash."""
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        command(run_dir, 5, "--seed", "3"), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_step(run_dir, 3, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=20)
    printed = train(run_dir, 5, "--seed", "3", "--resume")
    assert "restored: from step-000002" in printed or "from step-000002" in printed or "from step-000004" in printed
    assert exported_weights(run_dir) == exported_weights(whole_run)
    steps = [row["step"] for row in read_metrics(run_dir) if "reward/mean" in row]
    assert steps == [1, 2, 3, 4, 5]
    assert [row["reward/mean"] for row in read_metrics(run_dir) if "reward/mean" in row] == [
        row["reward/mean"] for row in read_metrics(whole_run) if "reward/mean" in row
    ]
    assert json.loads((run_dir / "summary.json").read_text())["restarts"] == 1


def test_two_workers_two_ranks_overlapped_heal_and_end_cleanly(tmp_path: Path) -> None:
    """2 engines, 2 learner ranks, staleness 1; SIGKILL of an engine: the run goes on and the engine comes back; then SIGTERM:
    checkpoint, exit 143, no orphan."""
    run_dir = tmp_path / "run"
    more = ["--rollout.workers=2", "--learner.ranks=2", "--loop.max_staleness=1", "--rollout.cpus_per_worker=0.25"]
    process = subprocess.Popen(
        command(run_dir, 2000, *more), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_step(run_dir, 4, process)
    children = psutil.Process(process.pid).children(recursive=True)
    next(child for child in children if "RolloutWorker" in " ".join(child.cmdline())).kill()
    wait_for_event(run_dir, "worker-revived", process)
    healed_at = read_metrics(run_dir)[-1]["step"]
    wait_for_step(run_dir, healed_at + 2, process)
    children += psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, out + err
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, f"orphans: {alive}"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["restarts"]) == ("stopped", 1)
    assert (run_dir / "checkpoints" / f"step-{summary['steps']:06d}" / "manifest.json").exists()
    rows = [row for row in read_metrics(run_dir) if "reward/mean" in row]
    assert [row["step"] for row in rows] == list(range(1, summary["steps"] + 1))
    assert {row["staleness/max"] for row in rows} == {0, 1}
    assert (rows[0]["sync/workers"], rows[-1]["sync/workers"]) == (2, 2)
    assert {row["worker"] for row in read_step(run_dir, 3).to_pylist()} == {"rollout-0", "rollout-1"}
    for step in range(1, summary["steps"] + 1):  # none lost, none repeated, the dead engine's prompts included
        assert len({row["prompt_id"] for row in read_step(run_dir, step).to_pylist()}) == 32


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--rollout.workers=50", r"needs .* logical CPUs, the Ray cluster has"),
        ("--learner.model=/nowhere/model", "/nowhere/model"),
        ("--data.train.0.typ=parquet", "did you mean type?"),
    ],
)
def test_what_cannot_run_is_one_message_and_no_half_run(tmp_path: Path, override: str, message: str) -> None:
    done = subprocess.run(
        command(tmp_path / "run", 2, override), cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert re.search(message, done.stderr), done.stderr


def test_a_run_is_not_overwritten(whole_run: Path) -> None:
    done = subprocess.run(
        command(whole_run, 5), cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ
    )
    assert done.returncode == 2 and "--resume" in done.stderr


def test_events_tell_the_story(whole_run: Path) -> None:
    kinds = [event["kind"] for event in read_events(whole_run)]
    assert kinds == ["started", "checkpoint", "checkpoint", "checkpoint"]  # steps 2, 4 and the end
