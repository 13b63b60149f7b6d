"""`sppo-ray init` writes a recipe that the command line takes, and a reward that works."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from sppo_ray.cli.main import main
from sppo_ray.environments.running_sum import operands


def test_the_written_project_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    printed = capsys.readouterr().out
    commands = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    assert commands == [
        "cd mine",
        "sppo-ray train recipe.yaml --run-dir runs/first",
        "sppo-ray report runs/first",
    ]
    assert len((tmp_path / "mine/recipe.yaml").read_text().splitlines()) == 12
    monkeypatch.chdir(tmp_path / "mine")
    assert main(["train", "recipe.yaml", "--dry-run"]) == 0
    assert "function: reward:reward" in capsys.readouterr().out
    (tmp_path / "mine/reward.py").write_text("def reward(response, ground_truth, extra): return 1 / 0\n")
    assert main(["train", "recipe.yaml", "--dry-run"]) == 2  # the function is called on the first row
    assert "fails on prompt rows/0" in capsys.readouterr().err


def test_the_rows_differ_and_the_reward_knows_the_right_answer(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path)]) == 0
    train, held_out = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("rows.jsonl", "held_out.jsonl")
    )
    prompts = {row["prompt"] for row in train + held_out}
    assert (len(train), len(held_out), len(prompts)) == (512, 64, 576)
    spec = importlib.util.spec_from_file_location("reward_of_the_project", tmp_path / "reward.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for row in train[:5]:
        total = sum(digit for _, digit in operands(row["prompt"]))
        assert module.reward(rf"a+1=01;\boxed{{{total:02d}}}", row["ground_truth"], {}) == 1.0
        assert module.reward(rf"\boxed{{{total + 1}}}", row["ground_truth"], {}) == 0.0
        assert module.reward("no box", row["ground_truth"], {}) == 0.0


def test_a_directory_with_content_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert f"{tmp_path} is not empty: name a new directory" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "mine.txt")]) == 2
    assert "cannot be written (File exists)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
