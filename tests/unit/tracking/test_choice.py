"""Which trackers a run opens, what happens when one fails, and those of other packages. W&B and
MLflow themselves: tests/trackers.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from sppo_ray import tracking
from sppo_ray.cli.main import main
from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from sppo_ray.rundir.layout import RunDir
from sppo_ray.tracking import open_trackers, require_trackers
from sppo_ray.tracking.tensorboard import TensorBoard
from tests.unit.trainer.test_loop import Run


def logging(*overrides: str) -> Any:
    return load_config("quickstart", [f"--logging.{override}" for override in overrides]).logging


@pytest.mark.parametrize(
    ("overrides", "opened"),
    [
        ((), [TensorBoard]),
        (("tensorboard=false",), []),
        (("tensorboard=false", "trackers=[tensorboard]"), [TensorBoard]),
        (("trackers=[tensorboard]",), [TensorBoard]),
    ],
)
def test_the_old_setting_and_the_list(tmp_path: Path, overrides: tuple[str, ...], opened: list) -> None:
    config = load_config("quickstart", [f"--logging.{override}" for override in overrides])
    found = open_trackers(config, RunDir(tmp_path), print)
    assert [type(tracker) for tracker in found] == opened


@pytest.mark.parametrize("words", ["--dry-run", "--run-dir=never"])
def test_a_missing_package_is_one_message_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    assert main(["train", "quickstart", words, "--logging.trackers=wandb"]) == 2
    message = "logging.trackers: wandb needs wandb, which is not installed: pip install wandb"
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "never").exists()


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "left_by_a_tracker").mkdir()
    assert find_spec("left_by_a_tracker") is not None
    assert not tracking._is_installed("left_by_a_tracker")
    assert tracking._is_installed("tensorboard")


def test_an_unknown_tracker_names_the_known() -> None:
    wanted = r"no tracker 'wanb' \(did you mean wandb\?\); known: tensorboard, wandb, mlflow"
    with pytest.raises(UserError, match=wanted):
        require_trackers(logging("trackers=[wanb]"))


@pytest.mark.parametrize("project", ["it's", "", "a/b"])
def test_a_project_is_a_plain_name(project: str) -> None:
    with pytest.raises(UserError, match="logging.project"):
        load_config("quickstart", [f'--logging.project="{project}"'])


# -------------------------------------------------------------------- a tracker of another package


def registered(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Register a class of this module as an installed package would."""
    entry = EntryPoint("theirs", f"{__name__}:{name}", tracking.GROUP)
    monkeypatch.setattr(tracking, "entry_points", lambda group: [entry])
    monkeypatch.setattr(EntryPoint, "load", lambda _: globals()[name])


class Theirs(GeneralTracker):
    """A tracker as Accelerate's guide shows it."""

    name = "theirs"
    requires_logging_directory = True
    calls: list[tuple[Any, ...]] = []

    def __init__(self, project: str, directory: str) -> None:
        super().__init__()
        self.calls.append(("new", project, directory))

    @property
    def tracker(self) -> Theirs:
        return self

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        self.calls.append(("settings", values["data.prompts_per_step"]))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.calls.append(("log", step, dict(values)))

    def finish(self) -> None:
        self.calls.append(("finish",))


class Broken(Theirs):
    def log(self, values: Mapping[str, float], step: int) -> None:
        raise ConnectionError("server away")


def test_a_registered_tracker_gets_settings_and_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(monkeypatch, "Theirs")
    Theirs.calls.clear()
    run = Run(tmp_path, "--loop.steps=2", "--logging.trackers=[theirs]")
    run.train()
    new, settings, *logged, finished = Theirs.calls
    assert new == ("new", "sppo-ray", str(run.path / "trackers/theirs"))
    assert Path(new[2]).is_dir()
    assert (settings, finished) == (("settings", 4), ("finish",))
    steps = {step: values for _, step, values in logged if "reward/mean" in values}
    assert set(steps) == {1, 2}


def test_a_tracker_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(monkeypatch, "Broken")
    said: list[str] = []
    config = load_config("quickstart", ["--logging.trackers=[theirs]", "--logging.tensorboard=false"])
    (tracker,) = open_trackers(config, RunDir(tmp_path), said.append)
    for step in range(3):
        tracker.write(step, {"a": 1.0})
    tracker.close()
    assert said == [
        "logging.trackers: theirs failed (ConnectionError: server away); the run goes on, and metrics.jsonl "
        "has everything"
    ]
