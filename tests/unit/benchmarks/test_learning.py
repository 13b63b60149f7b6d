"""The methods that `benchmarks.learning --arms` trains: settings, order, and that no run is made
twice. Functions stand for the training and its figures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import learning, report
from sppo_ray.config.loading import load_config


@pytest.mark.parametrize("arm", learning.ARMS)
def test_an_arm_is_a_setting_of_the_quickstart(arm: str) -> None:
    assert load_config("quickstart", learning.ARMS[arm]) != load_config("quickstart")


def test_arms_are_trained_seed_by_seed_and_never_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, Sequence[str]]] = []

    def train(recipe: str, seed: int, run_dir: Path, overrides: Sequence[str]) -> float:
        made.append((seed, tuple(overrides)))
        return 2.0

    def row(run_dir: Path, wall_s: float | None, part: str | None) -> dict[str, Any]:
        seed = int(run_dir.name.rpartition("seed")[2])
        figures = {"initial_accuracy": 0.4, "final_accuracy": 0.9, "gain_low": 0.4}
        return {"seed": seed, "steps": 1, "training_s": 1.0, "wall_s": wall_s, **figures}

    for module in (learning, report):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(learning, "train", train)
    monkeypatch.setattr(learning, "row", row)

    def command(*words: str) -> None:
        runs = ["--runs", str(tmp_path / "runs"), "--seeds", "1", "2"]
        monkeypatch.setattr(
            "sys.argv", ["learning", "quickstart", "--arms", "sao", "sppo-dis", *runs, *words]
        )
        assert learning.main() == 0

    command("--at-most", "1")
    assert made == [(1, learning.ARMS["sao"])]
    command()
    sao, dis = learning.ARMS["sao"], learning.ARMS["sppo-dis"]
    assert made == [(1, sao), (1, dis), (2, sao), (2, dis)]
    command()
    assert len(made) == 4
    rows = json.loads((tmp_path / "learning-quickstart-arms.json").read_text())["rows"]
    kept = [(row["arm"], row["seed"]) for row in rows]
    assert kept == [("sppo-dis", 1), ("sppo-dis", 2), ("sao", 1), ("sao", 2)]
    command("--loop.steps=5")  # other settings: begun again
    assert len(made) == 8
