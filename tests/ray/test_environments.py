"""Training on episodes from the command line, with real Ray, vLLM, DeepSpeed and environment
processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from sppo_ray.rundir.metrics import read_events, read_metrics
from sppo_ray.rundir.trajectories import read_step
from sppo_ray.rundir.weights_log import read_weights
from tests.ray.test_train import REPOSITORY, TIMEOUT_S, actor, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 4
SMALL = [
    f"--loop.steps={STEPS}",
    "--seed=3",
    "--data.prompts_per_step=32",
    "--data.minibatch_size=16",
    "--data.held_out.0.size=16",
    "--checkpoint.every=1",
    "--eval.every=4",
    "--logging.progress=plain",
]


def command(run_dir: Path, *more: str, recipe: str = "guess-number") -> list[str]:
    return [sys.executable, "-m", "sppo_ray", "train", recipe, "--run-dir", str(run_dir), *SMALL, *more]


def train(run_dir: Path, *more: str, recipe: str = "guess-number") -> Path:
    done = subprocess.run(
        command(run_dir, *more, recipe=recipe),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return run_dir


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("whole") / "run")


def digests(run_dir: Path) -> list[str]:
    return [record.digest for _, record in sorted(read_weights(run_dir).items())]


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    return [row for step in range(1, STEPS + 1) for row in read_step(run_dir, step).to_pylist()]


def played(row: dict[str, Any]) -> tuple[list[list[int]], list[list[int]]]:
    """The tokens of the actions and of the observations."""
    ends = np.cumsum(row["turn_lengths"]).tolist()
    parts = [row["response_ids"][start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return parts[::2], parts[1::2]


def test_every_recorded_episode_is_a_game_by_the_rules(whole_run: Path) -> None:
    """The game is played again here, from the recorded tokens alone."""
    from sppo_ray.models.bundled import resolve_model
    from sppo_ray.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(resolve_model("builtin:guess-number"))
    rows = rows_of(whole_run)
    assert len(rows) == STEPS * 32 and max(len(row["turn_lengths"]) for row in rows) > 4
    for row in rows:
        actions, observations = played(row)
        number, ceiling = int(row["ground_truth"]), int(row["prompt_text"].removeprefix("<bos>").rstrip("?"))
        found = False
        for action, observation in zip(actions, observations, strict=True):
            text = tokenizer.decode(action, skip_special_tokens=True)
            guess = int(text) if text.isdigit() and len(text) <= 3 else 0
            found = guess == number
            answer = "x" if not 1 <= guess <= ceiling else "+" if guess < number else "-"
            if observation:
                assert tokenizer.decode(observation) == answer and not found
        assert row["reward"] == float(found) == sum(row["turn_rewards"])
        assert len(row["response_logprobs"]) == sum(map(len, actions))
        assert row["finish_reason"] == ("stop" if found else "turns" if len(actions) == 4 else "length")


def test_learner_and_engine_agree_on_the_actions(whole_run: Path) -> None:
    """The check of each step's first minibatch compares the log-probs of all its actions."""
    for metrics in (row for row in read_metrics(whole_run) if "mismatch/first_batch_tokens" in row):
        assert metrics["mismatch/first_batch_difference"] < 1e-4
        assert metrics["mismatch/first_batch_tokens"] > 16
        assert 1 <= metrics["episode/turns_mean"] <= 4


def test_a_killed_environment_process_changes_nothing(whole_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        command(run_dir), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_step(run_dir, 1, process)
    for child in psutil.Process(actor(run_dir, "environment")["pid"]).children():
        child.kill()
    wait_for_step(run_dir, 2, process)
    for child in psutil.Process(actor(run_dir, "environment")["pid"]).children():
        child.suspend()
    printed, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, printed
    assert digests(run_dir) == digests(whole_run)
    assert [row["response_ids"] for row in rows_of(run_dir)] == [
        row["response_ids"] for row in rows_of(whole_run)
    ]


def test_a_killed_environment_actor_takes_the_run_back_to_its_checkpoint(
    whole_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        command(run_dir), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_step(run_dir, 1, process)
    os.kill(actor(run_dir, "environment")["pid"], signal.SIGKILL)
    printed, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, printed
    assert digests(run_dir) == digests(whole_run)
    assert [event for event in read_events(run_dir) if "environment" in event["message"]]


def test_a_stopped_run_resumes_exactly(whole_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        command(run_dir), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_step(run_dir, 2, process)
    process.kill()
    process.communicate()
    train(run_dir, "--resume")
    assert digests(run_dir) == digests(whole_run)


def test_a_step_replays_bit_for_bit(whole_run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sppo_ray", "replay", str(whole_run), "--step=3", "--json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["bit_for_bit"]


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("guess-number", ["--algorithm.type=ppo", "--algorithm.lam=0.9"]),
        (
            "guess-number",
            ["--algorithm.type=grpo", "--data.prompts_per_step=8", "--data.samples_per_prompt=4"],
        ),
        ("guess-number", ["--algorithm.kl.coefficient=0.01", "--loop.max_staleness=1"]),
        ("calculator-tool", []),
    ],
)
def test_other_algorithms_and_tools_train_on_episodes(recipe: str, more: list[str], tmp_path: Path) -> None:
    run_dir = train(tmp_path / "run", *more, "--loop.steps=2", recipe=recipe)
    rows = [row for step in (1, 2) for row in read_step(run_dir, step).to_pylist()]
    assert len(rows) == 64
    for row in rows:
        tokens = sum(row["turn_lengths"][::2])
        assert len(row["response_logprobs"]) == tokens
        if "--algorithm.type=ppo" in more:
            assert len(row["returns"]) == len(row["token_values"]) == len(row["token_advantages"]) == tokens
        if recipe == "calculator-tool":
            assert row["reward"] == float(f"\\boxed{{{row['ground_truth']}}}" in row["response_text"])
    assert [row["reward"] for row in rows if row["reward"] > 0]


def test_an_environment_that_draws_its_tasks_is_trained_on(tmp_path: Path) -> None:
    """`reset` makes prompts and games: each recorded game is that of its row's seed."""
    from sppo_ray.environments.base import Row
    from tests.unit.environments.environments_for_tests import HiddenNumber

    run_dir = train(
        tmp_path / "run",
        "--loop.steps=2",
        "--data.train=[{type: environment, seed: 0}]",
        "--data.held_out=[{type: environment, seed: 1000000, size: 16}]",
        "--environment={type: custom, environment: "
        "'tests.unit.environments.environments_for_tests:HiddenNumber', max_turns: 4, max_turn_tokens: 4}",
    )
    rows = [row for step in (1, 2) for row in read_step(run_dir, step).to_pylist()]
    assert len(rows) == 64 and len({row["prompt_id"] for row in rows}) == 64
    for row in rows:
        game = HiddenNumber(Row("", "", "environment", {}, row["prompt_id"]), 0)
        assert row["prompt_text"] == f"<bos>{game.reset(Row('', '', '', {}, row['prompt_id']).reset_seed)}"
        actions = row["turn_texts"][::2]
        assert (actions[-1] == str(game._number)) == (row["reward"] == 1.0)
    assert {row["reward"] for row in rows} == {0.0, 1.0}
