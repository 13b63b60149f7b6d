"""Permission for reward functions: built-in ones need none, those of a run directory need a
flag.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from sppo_ray.cli.main import main
from sppo_ray.config import CustomReward, EnvironmentSettings, MathReward, RewardSettings
from sppo_ray.config.loading import dump_config, load_config
from sppo_ray.config.permissions import Grants, asks_for, flags_for

CUSTOM = "--reward.function={type: custom, function: 'evil.code:reward'}"


class Free(CustomReward):
    confined: bool = False


def reward(function: object) -> RewardSettings:
    return RewardSettings.model_construct(function=function)


def asked(function: object) -> list[tuple[str, str]]:
    return [(one.kind, one.name) for one in asks_for(reward(function))]


def test_what_settings_ask_for() -> None:
    assert asked(MathReward()) == []
    assert asked(CustomReward(function="sppo_ray.rewards.last_number:reward")) == []
    assert asked(CustomReward(function="sppo_ray.rewards.last_number:answer")) == [
        ("module", "sppo_ray.rewards.last_number")
    ]
    assert asked(CustomReward(function="a.b:c", packages=("x",))) == [("module", "a.b"), ("package", "x")]
    assert asked(Free(function="a.b:c")) == [("module", "a.b"), ("unconfined", "a.b")]


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"type": "guess-number"}, []),
        ({"type": "tools", "tools": [{"type": "calculator"}, {"type": "python"}]}, []),
        ({"type": "custom", "environment": "a.b:C"}, [("module", "a.b")]),
        (
            {"type": "custom", "environment": "a.b:C", "confined": False},
            [("module", "a.b"), ("unconfined", "a.b")],
        ),
        (
            {"type": "tools", "tools": [{"type": "python"}, {"type": "function", "function": "a:f"}]},
            [("module", "a"), ("unconfined", "a")],
        ),
    ],
)
def test_what_an_environment_asks_for(environment: dict[str, Any], wanted: list[tuple[str, str]]) -> None:
    read = TypeAdapter(EnvironmentSettings).validate_python(environment | {"max_turn_tokens": 8})
    found = asks_for(RewardSettings(), read)
    assert [(one.kind, one.name) for one in found] == wanted
    assert all(one.setting.startswith("environment.") for one in found)


def test_what_grants_cover() -> None:
    one, free = asks_for(reward(Free(function="a.b:c")))
    assert Grants(("a",)).allows(one) and Grants(("a.b",)).allows(one)
    assert not Grants(("a.b.c", "ab", "b")).allows(one)
    assert not Grants(("a",)).allows(free) and Grants((), ("a",)).allows(free)
    assert flags_for([one, free]) == ["--allow-module=a.b", "--allow-unconfined=a.b"]


def run_directory(path: Path, *overrides: str) -> Path:
    (path / "export" / "policy").mkdir(parents=True)
    (path / "export" / "critic").mkdir()
    for model in ("policy", "critic"):
        (path / "export" / model / "config.json").write_text('{"model_type": "llama"}')
    (path / "config.yaml").write_text(dump_config(load_config("quickstart", list(overrides))))
    (path / "status.json").write_text("{}")
    return path


def test_a_file_of_ones_own_may_name_ones_own_module_but_no_installed_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "code.py").write_text("def reward(response, ground_truth, extra): return 1.0")
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(dump_config(load_config("quickstart", [CUSTOM])))
    assert main(["train", str(recipe), "--dry-run"]) == 0
    recipe.write_text(recipe.read_text().replace("packages: []", "packages: [sympy]"))
    assert main(["train", str(recipe), "--dry-run"]) == 2
    assert (
        "reward.function.packages asks for code of the installed package 'sympy'" in capsys.readouterr().err
    )
    for yes in ("--allow-module=sympy", "--reward.function.packages=[sympy]"):
        assert main(["train", str(recipe), "--dry-run", yes]) == 0


@pytest.mark.parametrize(
    "command",
    [["eval", "RUN", "--out", "OUT"], ["calibrate", "RUN"], ["train", "RUN/config.yaml", "--dry-run"]],
)
def test_a_run_directory_brings_no_code_without_a_yes(tmp_path: Path, capsys, command: list[str]) -> None:
    run = run_directory(tmp_path / "run", CUSTOM)
    words = [word.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for word in command]
    assert main(words) == 2
    assert "add --allow-module=evil.code" in capsys.readouterr().err


def test_a_critics_card_brings_none_either(tmp_path: Path, capsys) -> None:
    critic = tmp_path / "critic"
    critic.mkdir()
    settings = {
        "data": {"system_prompt": None, "prompt_suffix": None, "max_prompt_tokens": 40},
        "rollout": {},
        "reward": {"function": {"type": "custom", "function": "evil.code:reward"}},
    }
    (critic / "config.json").write_text('{"model_type": "llama"}')
    (critic / "calibration.json").write_text(json.dumps({"format": 1, "settings": settings}))
    words = ["calibrate", "--critic", str(critic), "--policy", str(tmp_path), "--data", "running-sum"]
    assert main(words) == 2
    assert (
        f"critic {critic}: reward.function.function asks for code of module 'evil.code'"
        in capsys.readouterr().err
    )


def test_calibrate_within_a_strangers_run_imports_nothing_of_it(tmp_path: Path) -> None:
    """The working directory is on the import path there, and its modules must not stand before
    installed ones.
    """
    run = run_directory(tmp_path / "run", "--reward.function={type: custom, function: 'evil:reward'}")
    owned = tmp_path / "owned"
    for name in ("evil", "yaml", "torch", "transformers", "pydantic", "sitecustom"):
        (run / f"{name}.py").write_text(f"open({str(owned)!r}, 'w').close()\ndef reward(*_): return 1.0\n")
    import sppo_ray

    repository = str(Path(sppo_ray.__file__).parents[1])
    # As `python -m sppo_ray` does it, with the package of this source tree and not with an
    # installed one.
    program = (
        "import sys; sys.path.insert(1, sys.argv.pop(1)); import runpy; runpy.run_module('sppo_ray', "
        "run_name='__main__')"
    )
    command = [sys.executable, "-c", program, repository, "calibrate", "."]
    done = subprocess.run(
        command, cwd=run, capture_output=True, text=True, env=os.environ, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "add --allow-module=evil" in done.stderr
    assert not owned.exists()


def test_a_comparison_that_is_continued_brings_none_either(tmp_path: Path, capsys) -> None:
    plan = {
        "recipe": "quickstart", "overrides": [CUSTOM.removeprefix("--")], "arms": [{"name": "sppo",
        "overrides": [], "note": ""}],
        "seeds": [1], "budget_s": 1.0, "concurrent": 1, "cores_per_run": 1, "targets": [], "baseline": "sppo",
    }  # fmt: skip
    (tmp_path / "compare.json").write_text(json.dumps(plan))
    assert main(["compare", "--out", str(tmp_path)]) == 2
    assert "add --allow-module=evil.code" in capsys.readouterr().err
