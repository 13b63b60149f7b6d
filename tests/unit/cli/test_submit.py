"""What `submit` sends of a recipe file: absolute paths, checked where the files are here."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppo_ray.cli.submit import _checked_file
from sppo_ray.config.loading import dump_config, load_config
from sppo_ray.errors import UserError

ROW = '{"prompt": "a1b2=", "ground_truth": "3"}'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROW)
    (tmp_path / "more.jsonl").write_text(ROW)
    source = "--data.train=[{type: jsonl, path: rows.jsonl}]"
    (tmp_path / "mine.yaml").write_text(dump_config(load_config("quickstart", [source])))
    return tmp_path


def test_relative_paths_become_absolute(folder: Path) -> None:
    sent = _checked_file("mine.yaml", {"loop.steps": 3})
    assert sent["config"]["data"]["train"][0]["path"] == str(folder / "rows.jsonl")
    assert sent["overrides"] == {"loop.steps": 3}
    sent = _checked_file("mine.yaml", {"data.train.0.path": "more.jsonl"})
    assert sent["overrides"] == {"data.train.0.path": str(folder / "more.jsonl")}
    # one that only the server has is left to it
    assert _checked_file("mine.yaml", {"data.train.0.path": "/shared/x.jsonl"})["overrides"] == {
        "data.train.0.path": "/shared/x.jsonl"
    }


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            {"data.train.0.path": "none.jsonl"},
            "data.train.0.path: none.jsonl: is not in .* another directory",
        ),
        ({"learner.model": "tiny"}, "learner.model: tiny: is not in"),
        ({"data.train.0.prompt_key": "question"}, "rows.jsonl: line 1: no question"),
        ({"loop.stepz": 3}, "loop.stepz: unknown setting"),
    ],
)
def test_a_mistake_is_told_before_anything_is_sent(folder: Path, overrides: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _checked_file("mine.yaml", overrides)
