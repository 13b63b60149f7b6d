"""Training end to end from the command line, with real Ray, vLLM, DeepSpeed and verifier processes.

It is the quickstart with few prompts per step, so a run takes seconds. Benchmarks measure what it
learns.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from sppo_ray.rundir.metrics import read_events, read_metrics
from sppo_ray.rundir.trace import read_trace
from sppo_ray.rundir.trajectories import read_step
from tests.documentation import require_documented_metrics
from tests.ray import run_record

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    "--data.prompts_per_step=32",
    "--data.minibatch_size=16",
    "--data.held_out.0.size=32",
    "--critic.warmup_steps=1",
    "--checkpoint.every=2",
    "--eval.every=3",  # not with a checkpoint: what it sums up over the steps crosses one
    "--logging.progress=plain",
]
TIMEOUT_S = 280


def command(run_dir: Path, steps: int, *more: str, program: Sequence[str] = ("sppo_ray",)) -> list[str]:
    return [
        sys.executable,
        "-m",
        *program,
        "train",
        "quickstart",
        "--run-dir",
        str(run_dir),
        f"--loop.steps={steps}",
        *SMALL,
        *more,
    ]


def train(run_dir: Path, steps: int, *more: str) -> str:
    done = subprocess.run(
        command(run_dir, steps, *more), cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def is_right(row: dict[str, Any]) -> float:
    """The running sum's rule, written down once more."""
    boxes = re.findall(r"\\boxed\{(\d+)\}", row["response_text"])
    return float(bool(boxes) and int(boxes[-1]) == int(row["ground_truth"]))


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if (run_dir / "metrics.jsonl").exists() and any(row["step"] >= step for row in read_metrics(run_dir)):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached: {process.communicate()}")


def actor(run_dir: Path, name: str) -> dict[str, Any]:
    """Its row in status.json, once its process is up: {"name", "incarnation", "pid", ...}."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        rows = json.loads((run_dir / "status.json").read_text()).get("actors", [])
        if found := next((row for row in rows if row["name"] == name and row["pid"] is not None), None):
            return found
        time.sleep(0.1)
    raise AssertionError(f"no {name} came up: {rows}")


def wait_for_training(run_dir: Path, step: int) -> None:
    """Wait until status.json says that the run trains after `step` steps. metrics.jsonl may have
    steps that a restart will drop.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        status = json.loads((run_dir / "status.json").read_text())
        if status["phase"] == "training" and status["state"]["step"] >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"{run_dir} does not train: {status}")


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
    printed = train(run_dir, 5, "--seed", "3", "--trace")
    assert "finished after step 5" in printed
    return run_dir


def test_a_run_leaves_everything_that_it_promises(whole_run: Path) -> None:
    summary = json.loads((whole_run / "summary.json").read_text())
    # 5 steps of 32 samples; the critic learned in each (2 minibatches a step).
    assert (summary["algorithm"], summary["seed"], summary["steps"], summary["samples"]) == (
        "sppo",
        3,
        5,
        160,
    )
    assert (summary["policy_version"], summary["critic_version"], summary["restarts"]) == (5, 10, 0)
    assert 0 < summary["initial_accuracy"] < 1 and 0 < summary["final_accuracy"] < 1
    for name in (
        "config.yaml",
        "environment.json",
        "curve.png",
        "events.jsonl",
        "evaluations/step-000003.json",
    ):
        assert (whole_run / name).stat().st_size > 0
    rows = {row["step"]: row for row in read_metrics(whole_run) if "reward/mean" in row}
    assert sorted(rows) == [1, 2, 3, 4, 5]
    assert all(row["staleness/max"] == 0 for row in rows.values())
    # float32: the engine's log-probs are the learner's up to rounding, at every step.
    assert all(rows[step]["mismatch/logprob_difference_max"] < 1e-4 for step in (2, 3, 4, 5))
    assert all(row["sync/probe_difference_max"] < 1e-4 for row in rows.values())


def test_the_time_of_every_worker_is_told(whole_run: Path) -> None:
    for row in read_metrics(whole_run):
        if "seconds/step" not in row:
            continue
        for role in ("rollout", "learner", "critic", "reward", "driver"):
            shares = [value for name, value in row.items() if name.startswith(f"time/{role}/")]
            assert sum(shares) == pytest.approx(1.0, abs=0.01), (row["step"], role)
        assert row["time/learner/train"] > 0 and row["time/rollout/sync"] > 0
    events = read_trace(whole_run)
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    calls = {(names[event["pid"]], event["name"]) for event in events if event["ph"] == "X"}
    assert {
        ("driver", "generate-wait"), ("driver", "evaluate"), ("driver", "checkpoint"),
        ("rollout", "generate"), ("rollout", "pull_weights"), ("learner", "update"),
        ("learner", "publish"), ("critic", "values"), ("critic", "update"), ("reward", "score"),
    } <= calls  # fmt: skip
    assert json.loads((whole_run / "summary.json").read_text())["advice"]


def test_the_trajectory_log_agrees_with_itself(whole_run: Path) -> None:
    rows = read_step(whole_run, 2).to_pylist()
    assert len(rows) == 32 and len({row["prompt_id"] for row in rows}) == 32
    for row in rows:
        assert row["advantage"] == pytest.approx(row["reward"] - row["value"], abs=1e-12)
        assert len(row["response_ids"]) == len(row["response_logprobs"])
        assert row["reward"] == is_right(row)
        assert row["policy_version"] == row["policy_version_end"] == 1


def test_its_last_step_replays_bit_for_bit(whole_run: Path) -> None:
    """In little what test_replay.py asks of every kind of run."""
    program = [sys.executable, "-m", "sppo_ray", "replay", str(whole_run), "--step", "5", "--exact", "--json"]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["bit_for_bit"] and report["start"] == {"from": "step-000004", "step": 4}
    verdicts = {quantity["name"]: quantity["verdict"] for quantity in report["quantities"]}
    assert verdicts["values"] == verdicts["advantages"] == verdicts["weights after the step"] == "equal"


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


def test_the_export_evaluated_greedily_says_what_transformers_says(whole_run: Path, tmp_path: Path) -> None:
    """`sppo-ray eval` of the run's own export: token for token what Transformers generates from it,
    in float32.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export, out = whole_run / "export" / "policy", tmp_path / "out"
    held_out = [
        "--data",
        "running-sum:size=24,seed=1000000",
        "--temperature",
        "0",
        "--max-response-tokens",
        "80",
    ]
    program = [sys.executable, "-m", "sppo_ray", "eval", str(export), *held_out, "--out", str(out)]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    report, rows = (
        json.loads((out / "report.json").read_text()),
        pq.read_table(out / "responses.parquet").to_pylist(),
    )
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(export)
    for row in rows:
        prompt = tokenizer(row["prompt_text"], add_special_tokens=False, return_tensors="pt")
        assert prompt["input_ids"][0].tolist() == row["prompt_ids"]
        generated = model.generate(
            **prompt, do_sample=False, max_new_tokens=80, pad_token_id=tokenizer.eos_token_id
        )
        assert generated[0, len(row["prompt_ids"]) :].tolist() == row["response_ids"]
    assert len(rows) == 24 and report["k"] == 1
    assert [row["reward"] for row in rows] == [is_right(row) for row in rows]
    assert report["overall"]["accuracy"] == pytest.approx(sum(map(is_right, rows)) / 24)


def test_a_resume_with_other_settings_is_refused_before_anything_is_touched(whole_run: Path) -> None:
    before = (whole_run / "config.yaml").read_text()
    more = ["--seed", "3", "--resume", "--learner.optimizer.lr=0.1"]
    done = subprocess.run(
        command(whole_run, 5, *more), cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 2
    assert "learner.optimizer.lr: 0.0005 then, 0.1 now" in done.stderr
    assert (whole_run / "config.yaml").read_text() == before


def test_killed_and_resumed_it_is_the_uninterrupted_run(whole_run: Path, tmp_path: Path) -> None:
    """SIGKILL in the midst of step 4's checkpoint, then --resume from step 2: equal weights,
    optimizers, random states, samples, metrics and evaluations, by hash. The other points of a
    step: test_exact_resume.py.
    """
    run_dir = tmp_path / "run"
    dying = command(run_dir, 5, "--seed", "3", program=["tests.chaos.kill_at", "checkpointing", "4"])
    died = subprocess.run(dying, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert died.returncode == -signal.SIGKILL, died.stdout + died.stderr
    left = {path.name[:13] for path in (run_dir / "checkpoints").iterdir()}
    assert left == {"step-000002", ".writing-step"}
    assert "from step-000002" in train(run_dir, 5, "--seed", "3", "--resume")
    expected, actual = run_record.record(whole_run), run_record.record(run_dir)
    for part in expected:
        assert actual[part] == expected[part], part
    assert json.loads((run_dir / "summary.json").read_text())["restarts"] == 1


def test_the_resume_of_a_finished_run_says_so_and_changes_nothing(whole_run: Path) -> None:
    before = (whole_run / "summary.json").read_text()
    assert f"{whole_run} finished after step 5: there is nothing left to do" in train(
        whole_run, 5, "--seed", "3", "--resume"
    )
    assert (whole_run / "summary.json").read_text() == before


def test_a_killed_critic_and_a_frozen_learner_leave_no_trace_in_the_result(
    whole_run: Path, tmp_path: Path
) -> None:
    """SIGKILL of the critic after step 3, SIGSTOP of the learner after step 4: the run goes back to
    its checkpoints by itself and ends as the undisturbed run did: weights, optimizers, random
    states, samples, metrics and evaluations, by hash.
    """
    run_dir = tmp_path / "run"
    more = ["--recovery.probe_timeout_s=10", "--recovery.probe_every_s=1"]
    process = subprocess.Popen(
        command(run_dir, 5, "--seed", "3", *more),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(run_dir, 3, process)
    killed, engine = actor(run_dir, "critic-0"), actor(run_dir, "rollout-0")
    os.kill(killed["pid"], signal.SIGKILL)
    wait_for_event(run_dir, "restored", process)
    wait_for_training(run_dir, 4)
    frozen = actor(run_dir, "learner-0")
    os.kill(frozen["pid"], signal.SIGSTOP)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, out + err
    assert "was never retrieved" not in out + err and "Traceback" not in out + err
    left = [process for process in psutil.process_iter() if process.pid in (killed["pid"], frozen["pid"])]
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in left)
    assert (killed["incarnation"], frozen["incarnation"], actor(run_dir, "learner-0")["incarnation"]) == (
        1,
        2,
        3,
    )
    assert actor(run_dir, "rollout-0") == engine, "the engine was kept"

    told = [(event["kind"], event["message"]) for event in read_events(run_dir)]
    lost = {kind: message for kind, message in told if kind.endswith("-lost")}
    assert lost.keys() == {"critic-lost", "learner-lost"}
    assert "critic-0: died" in lost["critic-lost"] and "learner-0: answered no probe" in lost["learner-lost"]
    assert (
        "goes back from step 3 to the checkpoint of step 2: restart 1 of 3" in dict(told[::-1])["recovering"]
    )
    assert json.loads((run_dir / "summary.json").read_text())["restarts"] == 2
    expected, actual = run_record.record(whole_run), run_record.record(run_dir)
    for part in expected:
        assert actual[part] == expected[part], part


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
        command(tmp_path / "run", 2, override),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert re.search(message, done.stderr), done.stderr


def test_a_run_is_not_overwritten(whole_run: Path) -> None:
    done = subprocess.run(
        command(whole_run, 5),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=os.environ,
    )
    assert done.returncode == 2 and "--resume" in done.stderr


def test_every_metric_is_on_its_page(whole_run: Path) -> None:
    require_documented_metrics(whole_run)


def test_events_tell_the_story(whole_run: Path) -> None:
    kinds = [event["kind"] for event in read_events(whole_run)]
    assert kinds == ["started", "checkpoint", "checkpoint", "checkpoint"]  # steps 2, 4 and the end
