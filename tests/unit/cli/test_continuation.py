"""`sppo-ray train --from RUN`: the models that the new run starts from, and its record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.cli.main import main
from sppo_ray.launch import train as train_module
from sppo_ray.launch.job import write_job
from sppo_ray.rundir.job import read_job
from sppo_ray.rundir.layout import RunDir
from tests.unit.ended_run import ended_run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ended_run(tmp_path_factory.mktemp("continuation"))


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """(config, record) of each training that would start."""
    found: list[Any] = []

    def note(config: Any, run_dir: Path, *, resume: bool, continues: Any) -> int:
        found.append((config, continues))
        return 0

    monkeypatch.setattr(train_module, "train", note)
    return found


def test_a_run_continues_with_its_own_recipe_and_other_settings(
    run: Path, tmp_path: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run-dir", str(tmp_path / "new"), "--loop.steps=7"]
    assert main(["train", "--from", str(run), *words]) == 0
    ((config, record),) = started
    assert config.learner.model == str(run / "export/policy")
    assert config.critic.model == str(run / "export/critic")
    assert (config.loop.steps, config.data.prompts_per_step) == (7, 4)
    assert (record.path, record.steps, record.model, record.critic) == (
        str(run),
        2,
        "builtin:running-sum",
        True,
    )
    assert f"starts from the policy and critic of {run}, step 2" in capsys.readouterr().out


GRPO = "--algorithm.type=grpo --data.samples_per_prompt=4 --data.minibatch_size=16"
PPO = "--algorithm.type=ppo"


@pytest.mark.parametrize(
    ("words", "critic", "reason"),
    [
        (GRPO, "builtin:running-sum", ""),
        (PPO, "builtin:running-sum", "critic was trained by bce and this run trains by mse"),
        (f"{PPO} --algorithm.critic_loss=bce", "export/critic", ""),
        ("--critic.model=builtin:tiny-critic", "builtin:tiny-critic", ""),
    ],
)
def test_the_critic_is_taken_where_it_fits(
    run: Path, started: list[Any], capsys: pytest.CaptureFixture[str], words: str, critic: str, reason: str
) -> None:
    assert main(["train", "quickstart", "--from", str(run), *words.split()]) == 0
    ((config, record),) = started
    assert config.critic.model.endswith(critic)
    assert record.critic == (critic == "export/critic")
    assert reason in capsys.readouterr().out


def test_a_token_critic_needs_the_vocabulary_of_the_policy(
    run: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "export/critic/tokenizer.json").write_text(json.dumps({"model": {"vocab": {"b": 0}}}))
    words = ["--algorithm.type=ppo", "--algorithm.critic_loss=bce"]
    assert main(["train", "quickstart", "--from", str(run), *words]) == 0
    assert started[0][0].critic.model == "builtin:running-sum"
    assert "critic has another vocabulary than its policy" in capsys.readouterr().out


def test_the_record_stays_when_the_new_run_is_resumed(run: Path, tmp_path: Path, started: list[Any]) -> None:
    assert main(["train", "--from", str(run)]) == 0
    ((config, record),) = started
    new = RunDir(tmp_path / "new")
    new.path.mkdir()
    write_job(new, config, record)
    write_job(new, config)  # a resume
    assert read_job(new.path).continues == record


def test_refusals(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished = Path(shutil.copytree(run, tmp_path / "unfinished"))
    (unfinished / "summary.json").unlink()
    for words, message in {
        ("--from", str(tmp_path / "none")): "no config.yaml in it, so it is not a run",
        ("--from", str(unfinished)): "has no export of a finished run: finish it",
        ("--from", str(run), "--learner.model=x"): "both name the starting policy",
        (): "name a recipe",
    }.items():
        assert main(["train", *words]) == 2
        assert message in capsys.readouterr().err
