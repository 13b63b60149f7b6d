"""Plugins: a package on the path with entry points, named by `type`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sppo_ray import plugins
from sppo_ray.algorithms.base import RewardedSample
from sppo_ray.config.loading import dump_config, load_config, parse_config
from sppo_ray.config.outside_yaml import read_yaml
from sppo_ray.config.permissions import asks_for
from sppo_ray.data.sources import open_sources
from sppo_ray.errors import UserError
from sppo_ray.rewards.registry import build_verifier

CODE = """
from typing import Literal
import sppo_ray as sr

class HalfSettings(sr.AlgorithmSettings):
    type: Literal["half"] = "half"
    factor: float = 0.5

def advantages(samples, settings):
    return [settings.factor * sample.reward for sample in samples]

HALF = sr.AlgorithmSpec(HalfSettings, advantages, needs="sample")

class CountSettings(sr.SourceSettings):
    type: Literal["count"] = "count"
    until: int = 3

def open_count(settings, name):
    return sr.rows_source([{"prompt": f"{n}=", "ground_truth": str(n)} for n in range(settings.until)], name)

COUNT = sr.DataPlugin(CountSettings, open_count)

def starts_right(completions, ground_truth, **row):
    return [float(text.startswith(truth)) for text, truth in zip(completions, ground_truth)]
"""
ENTRY_POINTS = """
[sppo_ray.algorithms]
half = my_plugin:HALF
nothing = my_plugin:COUNT
other-name = my_plugin:HALF
[sppo_ray.data]
count = my_plugin:COUNT
[sppo_ray.rewards]
starts-right = my_plugin:starts_right
broken = my_plugin_missing:reward
[sppo_ray.trackers]
my-tracker = my_plugin:Tracker
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package, as pip would have installed it."""
    (tmp_path / "my_plugin.py").write_text(CODE)
    info = tmp_path / "my_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_plugin", raising=False)
    return tmp_path


def test_an_algorithm(installed: Path) -> None:
    assert "my_plugin" not in sys.modules and "half" in plugins.names("algorithms")
    assert "my_plugin" not in sys.modules  # looking at names imports nothing
    config = load_config("quickstart", ["--algorithm.type=half", "--algorithm.factor=0.25"])
    assert (config.algorithm.type, config.algorithm.factor, config.has_critic) == ("half", 0.25, False)
    assert config.spec.advantages([RewardedSample("g", 1.0, 3)], config.algorithm) == [0.25]
    assert parse_config(read_yaml(dump_config(config), "dump")) == config
    with pytest.raises(UserError, match="algorithm.fctor: unknown setting"):
        load_config("quickstart", ["--algorithm.type=half", "--algorithm.fctor=0.25"])


def test_a_data_source(installed: Path) -> None:
    config = load_config("quickstart", ["--data.train=[{type: count, until: 5}]"])
    [source] = open_sources(config.data.train)
    assert [(e.id, e.ground_truth) for e in source.examples([0, 4])] == [("count/0", "0"), ("count/4", "4")]


def test_a_reward_needs_no_permission_and_is_not_imported_by_parsing(installed: Path) -> None:
    config = load_config("quickstart", ["--reward.function={type: starts-right, isolate: true}"])
    assert "my_plugin" not in sys.modules
    assert asks_for(config.reward) == [] and config.reward.function.isolate
    verifier = build_verifier(config.reward.function)
    assert (verifier.score("3 it is", "3", {})[0], verifier.score("so 3", "3", {})[0]) == (1.0, 0.0)
    free = load_config("quickstart", ["--reward.function={type: starts-right, confined: false}"])
    assert [(one.kind, one.name) for one in asks_for(free.reward)] == [("unconfined", "starts-right")]


def test_only_the_plugin_that_is_named_is_loaded(installed: Path) -> None:
    load_config("quickstart", ["--algorithm.type=grpo", "--data.samples_per_prompt=2"])
    assert "my_plugin" not in sys.modules
    assert plugins.names("trackers") == ["my-tracker"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["--algorithm.type=nothing"],
            "the plugin 'nothing' has no `settings`, a subclass of .*AlgorithmSettings",
        ),
        (["--algorithm.type=other-name"], "have the type 'half': give both the same name"),
        (["--algorithm.type=halff"], "there is no 'halff'"),
    ],
)
def test_a_plugin_that_does_not_fit(installed: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config("quickstart", overrides)


def test_a_package_that_cannot_be_imported(installed: Path) -> None:
    config = load_config("quickstart", ["--reward.function.type=broken"])
    with pytest.raises(UserError, match="my_plugin_missing:reward of the group .* cannot be loaded"):
        build_verifier(config.reward.function)


def test_the_command_line_knows_it(installed: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), *sys.path])}
    command = ["train", "quickstart", "--dry-run", "--algorithm.type=half", "--data.train=[{type: count}]"]
    done = subprocess.run(
        [sys.executable, "-m", "sppo_ray", *command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "factor: 0.5" in done.stdout and "until: 3" in done.stdout
