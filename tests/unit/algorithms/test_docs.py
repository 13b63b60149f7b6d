"""Adds the worked example of docs/algorithms.md to a copy of the package, tests it and trains with
it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sppo_ray.algorithms import ALGORITHMS

REPOSITORY = Path(__file__).resolve().parents[3]
PAGE = (REPOSITORY / "docs" / "algorithms.md").read_text(encoding="utf-8")
FILE, LINES, TEST = re.findall(
    r"^```(?:python|diff)\n(.*?)^```$", PAGE.partition("## Adding one")[2], re.MULTILINE | re.DOTALL
)

# The loop's own test bench: fake workers round the real trainer. Even prompts earn 1, odd ones 0;
# responses have two tokens.
TRAINS = """
import pathlib, sys
import sppo_ray
from tests.unit.trainer.test_loop import Run

root = pathlib.Path(sys.argv[1])
assert pathlib.Path(sppo_ray.__file__).is_relative_to(root)
run = Run(root, "--loop.steps=1", "--algorithm.type=opo", "--algorithm.clip_high=0.28")
run.train()
advantages = sorted(a for m in run.learner.updates for micro in m.ranks[0] for a in micro.advantages.tolist())
# rewards 1, 0, 1, 0 of equal lengths: mean 1/2, so +-1/2 on two tokens each
assert advantages == [-0.5] * 4 + [0.5] * 4, advantages
assert run.config.algorithm.clip_high == 0.28 and not run.critic.batches
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its tests, with the example added as the page says."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("sppo_ray", "tests"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    (root / "sppo_ray/algorithms/opo.py").write_text(FILE, encoding="utf-8")
    (root / "tests/unit/algorithms/test_opo.py").write_text(TEST, encoding="utf-8")
    table = root / "sppo_ray/algorithms/__init__.py"
    old_import, new_import, row = LINES.splitlines()
    text = table.read_text(encoding="utf-8")
    assert f"{old_import[1:]}\n" in text and text.count("\n}\n") == 1
    table.write_text(
        text.replace(old_import[1:], new_import[1:]).replace("\n}\n", f"\n{row[1:]}\n}}\n"), encoding="utf-8"
    )
    return root


def run_in(copy: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=copy, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_is_short_and_not_shipped() -> None:
    assert len((FILE + LINES + TEST).splitlines()) < 60
    assert "opo" not in ALGORITHMS


def test_its_own_test_passes(copy: Path) -> None:
    assert "1 passed" in run_in(
        copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/algorithms/test_opo.py"
    )


def test_a_recipe_takes_it_by_its_type(copy: Path) -> None:
    assert "opo" in run_in(
        copy, "-m", "sppo_ray", "train", "quickstart", "--dry-run", "--algorithm.type=opo"
    )


def test_the_loop_trains_with_it(copy: Path) -> None:
    run_in(copy, "-c", TRAINS, str(copy))


def test_it_keeps_the_rules_of_the_tree(copy: Path) -> None:
    run_in(copy, "-m", "ruff", "check", "sppo_ray/algorithms", "tests/unit/algorithms/test_opo.py")
    run_in(
        copy,
        "-m",
        "ruff",
        "format",
        "--check",
        "sppo_ray/algorithms/opo.py",
        "tests/unit/algorithms/test_opo.py",
    )


def test_the_page_covers_every_algorithm() -> None:
    assert re.findall(r"^## ([\w+]+): ", PAGE, re.MULTILINE) == list(ALGORITHMS)
    for name, spec in ALGORITHMS.items():
        own = set(spec.settings.model_fields) - set(ALGORITHMS["sppo"].settings.model_fields)
        section = PAGE.partition(f"## {name}: ")[2].partition("\n## ")[0]
        assert not [setting for setting in own if f"`{setting}`" not in section], name
