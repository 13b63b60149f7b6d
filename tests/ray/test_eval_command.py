"""`sppo-ray eval` with real engines and real verifier processes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = "builtin:running-sum"
TIMEOUT_S = 280


def command(out: Path, *arguments: str, data: str) -> list[str]:
    return [sys.executable, "-m", "sppo_ray", "eval", MODEL, "--data", data, "--out", str(out), *arguments]


def evaluate(
    out: Path, *arguments: str, data: str = "running-sum:size=24,seed=1000000"
) -> tuple[dict[str, Any], list[dict]]:
    """The report and the responses' rows."""
    done = subprocess.run(
        command(out, *arguments, data=data), cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "avg@k" in done.stdout and str(out) in done.stdout
    return json.loads((out / "report.json").read_text()), pq.read_table(out / "responses.parquet").to_pylist()


def is_right(row: dict[str, Any]) -> bool:
    """The running sum's rule, written down once more."""
    boxes = re.findall(r"\\boxed\{(\d+)\}", row["response_text"])
    return bool(boxes) and int(boxes[-1]) == int(row["ground_truth"])


def test_figures_follow_from_the_responses(tmp_path: Path) -> None:
    report, rows = evaluate(tmp_path / "four", "-k", "4", "--pass-k", "1,4", "--seed", "3")
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [
        (f"running-sum/{p}", s) for p in range(24) for s in range(4)
    ]
    groups = [rows[start : start + 4] for start in range(0, 96, 4)]
    overall = report["overall"]
    assert overall["accuracy"] == pytest.approx(sum(map(is_right, rows)) / 96)
    assert overall["pass_at"]["4"] == pytest.approx(sum(any(map(is_right, group)) for group in groups) / 24)
    assert 0.0 < overall["accuracy"] < overall["pass_at"]["4"]
    low, high = overall["pass_intervals"]["4"]
    assert low < overall["pass_at"]["4"] < high
    assert overall["response_length_mean"] == pytest.approx(
        sum(len(row["response_ids"]) for row in rows) / 96
    )
    voted = [
        max(group, key=lambda row: [r["answer"] for r in group].count(row["answer"])) for group in groups
    ]
    if all(row["answer"] for row in rows):  # where nobody abstains, the plain mode is the majority
        assert overall["majority"] == pytest.approx(sum(map(is_right, voted)) / 24)


@pytest.mark.slow
def test_a_seed_repeats_the_responses_with_any_number_of_engines(tmp_path: Path) -> None:
    _, rows = evaluate(tmp_path / "one", "-k", "4", "--seed", "3")
    _, again = evaluate(
        tmp_path / "two", "-k", "2", "--seed", "3", "--workers", "2", "--rollout.cpus_per_worker=0.5"
    )
    assert {row["worker"] for row in again} == {"rollout-0", "rollout-1"}
    assert [row["response_ids"] for row in again] == [
        row["response_ids"] for row in rows if row["sample"] < 2
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_evaluation_leaves_no_process_and_no_file(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = command(tmp_path / "out", "-k", "64", data="running-sum:size=2000")
    process = subprocess.Popen(run, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + TIMEOUT_S
    while not any("RolloutWorker" in " ".join(cmdline_of(child)) for child in children):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, f"orphans: {alive}"
    assert not list(tmp_path.iterdir())


def cmdline_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
