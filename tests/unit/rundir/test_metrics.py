"""Metrics on disk: what is written can be read, after a crash and after a resume too."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sppo_ray.errors import UserError
from sppo_ray.rundir.jsonlines import JsonLines, finite_json, read_json_lines, write_atomically
from sppo_ray.rundir.metrics import EventLog, MetricsWriter, depends_on_the_clock, read_events, read_metrics
from sppo_ray.trainer.step_metrics import summarise_samples
from sppo_ray.types import Prompt, PromptValue, RequestId, ScoredTrajectory, TrainingSample, Trajectory


def lines(run_dir: Path) -> list[str]:
    return (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def write_steps(run_dir: Path, steps: range) -> None:
    with MetricsWriter(run_dir) as writer:
        for step in steps:
            writer.write(step, {"reward/mean": step / 10})


# ------------------------------------------------------------------------------------------ writing


def test_a_step_is_one_line(tmp_path: Path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"reward/mean": 0.5, "samples/count": 256, "policy/ratio": np.float32(0.25)})
        row = json.loads(lines(tmp_path)[0])  # on disk before the writer is closed
    assert row.pop("time") > 1.5e9
    assert row == {"step": 1, "reward/mean": 0.5, "samples/count": 256, "policy/ratio": 0.25}
    assert isinstance(read_metrics(tmp_path)[0]["samples/count"], int)


def test_non_finite_numbers_are_null_and_named(tmp_path: Path):
    with MetricsWriter(tmp_path) as writer:
        finite = writer.write(1, {"a/nan": math.nan, "a/fine": 1.0, "a/inf": -math.inf})
    assert finite == {"a/fine": 1.0}
    row = json.loads(lines(tmp_path)[0], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (row["a/nan"], row["a/inf"], row["a/fine"]) == (None, None, 1.0)
    assert row["nonfinite"] == ["a/nan", "a/inf"]


def test_a_metric_that_is_no_number_is_named(tmp_path: Path):
    with (
        MetricsWriter(tmp_path) as writer,
        pytest.raises(TypeError, match="a/text is 'high'"),
    ):
        writer.write(1, {"a/text": "high"})
    assert read_metrics(tmp_path) == []


def test_a_torn_line_is_not_read_and_not_built_upon(tmp_path: Path):
    write_steps(tmp_path, range(1, 3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')  # the process was killed here
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    write_steps(tmp_path, range(3, 5))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_what_depends_on_the_clock():
    clock = (
        "time", "seconds/total", "seconds/generate-wait", "busy/learner-0", "busy/learner-0/update",
        "sync/seconds",
        "policy/seconds", "critic/seconds", "eval/seconds", "rollout/seconds_mean", "reward/seconds_max",
    )  # fmt: skip
    follows = (
        "step",
        "reward/mean",
        "policy/loss",
        "sync/probe_difference_max",
        "train/value/brier",
        "tokens/total",
    )
    assert all(map(depends_on_the_clock, clock)) and not any(map(depends_on_the_clock, follows))


def test_a_broken_inner_line_is_named(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a JSON line"):
        read_metrics(tmp_path)


def test_a_killed_writer_loses_no_finished_line(tmp_path: Path):
    program = (
        "import os, sys; from pathlib import Path; from sppo_ray.rundir.metrics import MetricsWriter\n"
        "writer = MetricsWriter(Path(sys.argv[1]))\n"
        "for step in range(1, 4): writer.write(step, {'reward/mean': 0.5})\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60)
    assert done.returncode == -9
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]


# ----------------------------------------------------------------------------------------- resuming


def test_a_resumed_run_has_each_step_once(tmp_path: Path):
    write_steps(tmp_path, range(8))  # killed after step 7; the checkpoint is of step 5
    with MetricsWriter(tmp_path) as writer:
        assert writer.truncate_after(5) == 2
        assert writer.truncate_after(5) == 0
        for step in (6, 7, 8):
            writer.write(step, {"reward/mean": 1.0})
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(9))
    assert [row["reward/mean"] for row in rows[4:7]] == [0.4, 0.5, 1.0]


def test_importing_and_writing_load_neither_torch_nor_ray(tmp_path: Path):
    program = (
        "import sys; from pathlib import Path\n"
        "from sppo_ray.display import plots, progress\n"
        "from sppo_ray.evaluation import scores\n"
        "from sppo_ray.rundir import layout, metrics\n"
        "from sppo_ray.tracking.tensorboard import TensorBoard\n"
        "from sppo_ray.trainer import timing\n"
        "light = {'torch', 'ray', 'matplotlib', 'tensorboard', 'rich'} & set(sys.modules)\n"
        "metrics.MetricsWriter(Path(sys.argv[1])).write(1, {'a/b': 1.0})\n"
        "TensorBoard(Path(sys.argv[1])).write(1, {'a/b': 1.0})\n"
        "print(sorted(light), sorted({'torch', 'ray', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], timeout=60, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[] []", done.stderr


# ------------------------------------------------------------------------------------------- events


def test_events_keep_their_order_and_fields(tmp_path: Path):
    for part in (["start"], ["worker-died", "worker-healed"]):  # two incarnations
        log = EventLog(tmp_path)
        for kind in part:
            log.write(kind, f"it was {kind}", worker="rollout-1")
        log.close()
    events = read_events(tmp_path)
    assert [event["kind"] for event in events] == ["start", "worker-died", "worker-healed"]
    assert events[1] | {"time": 0} == {
        "time": 0,
        "kind": "worker-died",
        "message": "it was worker-died",
        "worker": "rollout-1",
    }
    assert events[0]["time"] <= events[1]["time"] <= events[2]["time"]
    assert read_events(tmp_path / "elsewhere") == []


def test_json_lines_refuse_nan_and_keep_text(tmp_path: Path):
    file = JsonLines(tmp_path / "x.jsonl")
    with pytest.raises(ValueError):
        file.append({"a": math.nan})
    file.append({"a": "ünï\ncode"})
    assert list(read_json_lines(tmp_path / "x.jsonl")) == [{"a": "ünï\ncode"}]


def test_finite_json():
    assert finite_json({1: (math.nan, 2.0), "b": {"c": math.inf}}) == {"1": [None, 2.0], "b": {"c": None}}


def test_write_atomically_replaces_the_whole_and_leaves_nothing_behind(tmp_path: Path):
    path = tmp_path / "status.json"
    write_atomically(path, "a long first content")
    write_atomically(path, "second")
    assert path.read_text() == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


# ------------------------------------------------------------------------------------------ summary


def sample(
    reward: float,
    value: float,
    length: int,
    *,
    source: str = "sum",
    version: int = 4,
    cut: bool = False,
    end: int | None = None,
) -> TrainingSample:
    prompt = Prompt(
        id=f"{source}/0", source=source, text="1+1=", token_ids=(1,), critic_token_ids=(1,), ground_truth="2"
    )
    trajectory = Trajectory(
        request_id=RequestId("0", 0, 0),
        prompt_id=prompt.id,
        response_ids=(5,) * length,
        response_logprobs=(-0.1,) * length,
        finish_reason="length" if cut else "stop",
        policy_version=version,
        policy_version_end=version if end is None else end,
        worker="rollout-0",
        seconds=length / 10,
    )
    scored = ScoredTrajectory(
        prompt=prompt,
        trajectory=trajectory,
        response_text="2",
        reward=reward,
        reason="correct",
        reward_seconds=0.01 * length,
        value=PromptValue(value_logit=math.log(value / (1 - value)), value=value, critic_version=3),
    )
    return TrainingSample(scored=scored, advantage=reward - value, shaped_reward=reward)


def test_the_critic_is_judged_by_what_it_learns() -> None:
    # Two solved responses; shaping subtracts .5 from one of them: rewards 1 and 1, shaped rewards 1
    # and .5, values 1 and .5.
    samples = [sample(1.0, 0.999, 10), replace(sample(1.0, 0.5, 20), shaped_reward=0.5)]
    summary = summarise_samples(samples, learner_version=5)
    assert summary["reward/mean"] == 1.0  # what the verifier said
    assert summary["value/brier"] == pytest.approx(0.0, abs=1e-6)
    assert summary["value/std"] == pytest.approx(0.2495)  # half of .999 - .5


def test_summary_of_a_step_by_hand():
    summary = summarise_samples(
        [
            sample(1.0, 0.8, 10),
            sample(0.0, 0.6, 20, cut=True),
            sample(1.0, 0.3, 30, source="product", version=3, end=4),
            sample(0.5, 0.1, 40, source="product", version=2),
        ],
        learner_version=4,
    )
    expected = {
        "samples/count": 4,
        "reward/mean": 0.625,
        "reward/std": math.sqrt((0.375**2 + 0.625**2 + 0.375**2 + 0.125**2) / 4),
        "reward/seconds_mean": 0.25,
        "reward/seconds_max": 0.4,
        "accuracy/sum": 0.5,
        "accuracy/product": 0.5,  # half credit is not solved
        "response/tokens": 100,
        "response/length_mean": 25.0,
        "response/length_max": 40,
        "response/truncation_rate": 0.25,
        "rollout/seconds_mean": 2.5,
        "rollout/seconds_max": 4.0,
        "rollout/mixed_version_rate": 0.25,
        "value/mean": 0.45,
        "value/brier": (0.04 + 0.36 + 0.49 + 0.16) / 4,
        "advantage/mean": (0.2 - 0.6 + 0.7 + 0.4) / 4,
        # squares around the mean 0.175: 0.000625 + 0.600625 + 0.275625 + 0.050625 = 0.9275
        "advantage/std": math.sqrt(0.9275 / 4),
        "staleness/mean": 0.75,  # 0, 0, 1, 2
        "staleness/max": 2,
        "staleness/count_0": 2,
        "staleness/count_1": 1,
        "staleness/count_2": 1,
    }
    assert {name: summary[name] for name in expected} == pytest.approx(expected)
    assert {"value/log_loss", "value/log_loss_constant", "value/pearson"} <= summary.keys()


def test_a_summary_can_be_written_when_all_rewards_are_equal(tmp_path: Path):
    summary = summarise_samples([sample(1.0, 0.8, 10), sample(1.0, 0.6, 10)], learner_version=4)
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, summary)
    row = read_metrics(tmp_path)[0]
    assert row["value/pearson"] is None and "value/pearson" in row["nonfinite"]
    assert row["value/log_loss_constant"] == pytest.approx(0.0, abs=1e-6)


def test_a_summary_needs_samples():
    with pytest.raises(ValueError, match="at least one sample"):
        summarise_samples([], learner_version=1)
