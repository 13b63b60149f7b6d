"""Each kind of algorithm with real actors, from the command line, with all its optional parts.

The tests recompute the recorded advantages from the recorded rewards and values. They check the
actors of the run, and that the log-probs of pi_old, pi_ref and the engine agree where required.
"""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sppo_ray.models.bundled import resolve_model
from sppo_ray.models.tokenizers import load_tokenizer
from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.rundir.trajectories import read_step
from tests.ray.test_train import train

STEPS = 3
LIGHT = ["--checkpoint.every=0", "--checkpoint.export=false", "--eval.every=0", "--eval.at_start=false"]


def trained(tmp_path: Path, *more: str) -> Path:
    run_dir = tmp_path / "run"
    train(run_dir, STEPS, *LIGHT, *more)
    return run_dir


def last(run_dir: Path) -> dict[str, float]:
    return next(row for row in reversed(read_metrics(run_dir)) if "policy/loss" in row)


@pytest.mark.slow
def test_ppo_with_a_token_critic_a_reference_and_an_entropy_bonus(tmp_path: Path) -> None:
    run_dir = trained(
        tmp_path, "--algorithm.type=ppo", "--algorithm.critic_loss=bce", "--algorithm.lam=0.9",
        "--algorithm.whiten=false",
        "--algorithm.kl.coefficient=0.05", "--algorithm.entropy_coefficient=0.001",
    )  # fmt: skip
    first, final = read_step(run_dir, 1).to_pylist(), read_step(run_dir, STEPS).to_pylist()
    # A fresh head says 0.5 everywhere, before any token.
    assert {value for row in first for value in row["token_values"]} == {0.5}
    for row in final:
        values, reward = row["token_values"], row["reward"]
        # GAE from its definition: the sum of discounted temporal differences
        deltas = [b - a for a, b in itertools.pairwise(values)] + [reward - values[-1]]
        wanted = [sum(0.9**k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(values))]
        assert row["token_advantages"] == pytest.approx(wanted, abs=1e-9)
        assert row["returns"] == pytest.approx([a + v for a, v in zip(wanted, values, strict=True)], abs=1e-9)
        assert row["value"] == values[0] and len(values) == len(row["response_ids"])
    rows = [row for row in read_metrics(run_dir) if "policy/loss" in row]
    # The first update of the policy is at the weights of the reference; after it they differ.
    assert rows[0]["policy/kl_reference"] < rows[-1]["policy/kl_reference"] < 0.1
    assert set(json.loads((run_dir / "summary.json").read_text())["peak_memory"]) == {
        "rollout-0", "learner-0", "critic-0", "reference-0", "reward",
    }  # fmt: skip


def test_grpo_with_dynamic_sampling_a_sequence_ratio_and_staleness(tmp_path: Path) -> None:
    run_dir = trained(
        tmp_path, "--algorithm.type=grpo", "--data.prompts_per_step=4", "--data.samples_per_prompt=8",
        "--algorithm.dynamic_sampling.max_rounds=3", "--algorithm.ratio=sequence",
        "--algorithm.loss_aggregation=sequence-mean",
        "--loop.max_staleness=1",
    )  # fmt: skip
    for step in range(1, STEPS + 1):
        rows = read_step(run_dir, step).to_pylist()
        groups = [
            list(group)
            for _, group in itertools.groupby(rows, key=lambda row: row["request_id"].rpartition("/")[0])
        ]
        assert all(len(group) == 8 and len({row["prompt_id"] for row in group}) == 1 for group in groups)
        for group in groups:
            rewards = [row["reward"] for row in group]
            assert 0 < sum(rewards) < 8  # groups without spread are left out
            wanted = [(r - statistics.fmean(rewards)) / (statistics.stdev(rewards) + 1e-4) for r in rewards]
            assert [row["advantage"] for row in group] == pytest.approx(wanted, abs=1e-9)
        assert all(row["value"] is None for row in rows)
    summary = json.loads((run_dir / "summary.json").read_text())
    # No critic was placed. More was generated than trained on, whenever a group was dropped.
    assert (
        set(summary["peak_memory"]) == {"rollout-0", "learner-0", "reward"} and summary["critic_version"] == 0
    )
    drawn = [row for row in read_metrics(run_dir) if "groups/draws" in row]
    trained_tokens = sum(row["response/tokens"] for row in drawn)
    dropped = any(row["groups/dropped_rate"] > 0 for row in drawn)
    assert (summary["response_tokens"] > trained_tokens) == dropped
    # A sequence's ratio is a geometric mean over its tokens: it stays nearer to 1 than the tokens'
    # own.
    assert 0.9 < last(run_dir)["policy/ratio_max"] < 1.2


@pytest.mark.slow
def test_remax_with_recomputed_log_probs_and_a_truncated_correction(tmp_path: Path) -> None:
    run_dir = trained(
        tmp_path,
        "--algorithm.type=remax",
        "--algorithm.old_logprobs=learner",
        "--algorithm.importance_cap=2.0",
    )
    rows = [row for step in range(1, STEPS + 1) for row in read_step(run_dir, step).to_pylist()]
    assert all(row["advantage"] == row["reward"] - row["baseline_reward"] for row in rows)
    greedy: dict[str, set[float]] = {}
    for row in rows:
        greedy.setdefault(f"{row['step']}/{row['prompt_id']}", set()).add(row["baseline_reward"])
    assert all(len(rewards) == 1 for rewards in greedy.values())
    final = last(run_dir)
    # float32, synchronous: learner and engine agree, so the correction is 1 but for rounding.
    assert final["policy/importance_mean"] == pytest.approx(1.0, abs=1e-4)
    assert final["mismatch/logprob_difference_max"] < 1e-4
    tokens = sum(len(row["response_ids"]) + row["baseline_tokens"] for row in rows)
    assert json.loads((run_dir / "summary.json").read_text())["response_tokens"] == tokens


@pytest.mark.slow
def test_a_curriculum_trains_on_prompts_whose_outcome_is_open(tmp_path: Path) -> None:
    run_dir = trained(
        tmp_path,
        "--data.curriculum.candidates=4",
        "--algorithm.overlong.buffer_tokens=60",
        "--algorithm.overlong.penalty=0.5",
    )
    rows = [row for step in range(1, STEPS + 1) for row in read_step(run_dir, step).to_pylist()]
    assert len(rows) == STEPS * 32 and {row["critic_version"] for row in rows} == {0, 2, 4}
    for row in rows:
        # Limit 80, buffer 60: from 20 tokens on a response costs (length - 20) / 60 of the penalty;
        # never below 0.
        punished = row["reward"] - 0.5 * min(1.0, max(0.0, (len(row["response_ids"]) - 20) / 60))
        assert row["shaped_reward"] == pytest.approx(max(0.0, punished))
        assert row["advantage"] == pytest.approx(row["shaped_reward"] - row["value"])


@pytest.mark.slow
def test_sao_with_two_critic_updates_frozen_attention_and_critic_only_steps(tmp_path: Path) -> None:
    run_dir = trained(
        tmp_path,
        "--algorithm.type=sao",
        "--algorithm.critic_loss=bce",
        "--critic.updates_per_minibatch=2",
        "--critic.frozen_parameters=self_attn",
        "--critic.warmup_steps=1",
        "--loop.max_staleness=1",
        "--checkpoint.export=true",
    )
    rows = [row for step in range(1, STEPS + 1) for row in read_step(run_dir, step).to_pylist()]
    for row in rows:
        values, reward, length = row["token_values"], row["reward"], len(row["response_ids"])
        lam = max(0.0, 1.0 - 1.0 / (1.5 * length))
        deltas = [b - a for a, b in itertools.pairwise(values)] + [reward - values[-1]]
        wanted = [sum(lam**k * delta for k, delta in enumerate(deltas[t:])) for t in range(length)]
        assert row["token_advantages"] == pytest.approx(wanted, abs=1e-9)
        assert row["returns"] == [reward] * length
    # Two minibatches a step, each with two updates of the critic; the policy waits for one step.
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["critic_version"], summary["policy_version"]) == (STEPS * 4, STEPS)
    metrics = [row for row in read_metrics(run_dir) if "samples/count" in row]
    assert ["policy/loss" in row for row in metrics] == [False, True, True]
    assert 0.9 < last(run_dir)["policy/effective_sample_size"] <= 1.0 + 1e-6
    assert 0.0 <= last(run_dir)["policy/masked_fraction"] < 0.2
    start, end = (
        load_file(path / "model.safetensors")
        for path in (resolve_model("builtin:running-sum", print), run_dir / "export" / "critic")
    )
    frozen = [name for name in end if "self_attn" in name]
    assert frozen and all(torch.equal(start[name], end[name]) for name in frozen)
    assert any(not torch.equal(start[name], end[name]) for name in end if name in start.keys() - set(frozen))


@pytest.mark.slow
def test_spo_tracks_prompts_and_draws_the_uncertain_ones(tmp_path: Path) -> None:
    run_dir = trained(
        tmp_path,
        "--algorithm.type=spo",
        "--data.train.0.size=64",
        "--data.curriculum={candidates: 2, sharpness: 0.5, floor: 0.1}",
    )
    cells: dict[str, tuple[float, float]] = {}
    for step in range(1, STEPS + 1):
        rows = read_step(run_dir, step).to_pylist()
        rates = [a / (a + b) for a, b in (cells.get(row["prompt_id"], (0.5, 0.5)) for row in rows)]
        assert [row["history_rate"] for row in rows] == rates
        raw = [row["reward"] - rate for row, rate in zip(rows, rates, strict=True)]
        mean, deviation = statistics.fmean(raw), statistics.pstdev(raw)
        wanted = [(a - mean) / (deviation + 1e-8) for a in raw]
        assert [row["advantage"] for row in rows] == pytest.approx(wanted, abs=1e-9)
        for row in rows:
            a, b = cells.get(row["prompt_id"], (0.5, 0.5))
            cells[row["prompt_id"]] = 0.875 * a + row["reward"], 0.875 * b + 1.0 - row["reward"]
    assert last(run_dir)["tracker/prompts"] == len(cells)
    assert set(json.loads((run_dir / "summary.json").read_text())["peak_memory"]) == {
        "rollout-0", "learner-0", "reward",
    }  # fmt: skip


@pytest.mark.slow
def test_sppo_with_a_tracker_and_a_mask(tmp_path: Path) -> None:
    run_dir = trained(
        tmp_path,
        "--algorithm.tracker.rho=0.9",
        "--algorithm.loss.type=dppo",
        "--data.train.0.size=32",
    )
    rows = [row for step in range(1, STEPS + 1) for row in read_step(run_dir, step).to_pylist()]
    for row in rows:
        blend = row["value"] + row["history_share"] * (row["history_rate"] - row["value"])
        assert row["advantage"] == pytest.approx(row["reward"] - blend, abs=1e-12)
    # The second step has rates, the third also an estimate of the critic's error.
    by_step = [[row for row in rows if row["step"] == step] for step in (1, 2, 3)]
    assert all(row["history_weight"] == 0.0 for row in by_step[0])
    assert any(row["history_weight"] >= 1.0 for row in by_step[1])
    assert all(row["history_share"] == 0.0 for row in by_step[1])
    assert any(row["history_share"] > 0.0 for row in by_step[2])


@pytest.mark.slow
def test_reinforce_pp(tmp_path: Path) -> None:
    run_dir = trained(tmp_path, "--algorithm.type=reinforce++", "--algorithm.loss.type=cispo")
    rows = read_step(run_dir, STEPS).to_pylist()
    rewards = [row["reward"] for row in rows]
    mean, deviation = statistics.fmean(rewards), statistics.pstdev(rewards)
    wanted = [(r - mean) / (deviation + 1e-8) for r in rewards]
    assert [row["advantage"] for row in rows] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.slow
def test_a_critic_that_reads_the_reference_answer(tmp_path: Path) -> None:
    run_dir = trained(
        tmp_path,
        "--data.critic_suffix=+{ground_truth}=",
        "--data.max_prompt_tokens=48",
        "--checkpoint.export=true",
    )
    rows = [row for step in range(1, STEPS + 1) for row in read_step(run_dir, step).to_pylist()]
    characters = load_tokenizer(run_dir / "export" / "critic")
    for row in rows:
        told = row["prompt_text"] + f"+{row['ground_truth']}="
        assert row["critic_prompt_ids"] == characters(told, add_special_tokens=False)["input_ids"]
        assert row["prompt_ids"] == characters(row["prompt_text"], add_special_tokens=False)["input_ids"]
        assert row["advantage"] == row["reward"] - row["value"]
    assert "It needs the reference answer" in (run_dir / "export" / "critic" / "README.md").read_text()
