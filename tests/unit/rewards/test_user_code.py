"""Where the functions that a recipe names are found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import sppo_ray
from sppo_ray.rewards.user_code import find_definition


@pytest.mark.parametrize(
    "path", ["sppo_ray.rewards.last_number:reward", "sppo_ray.environments.vowels:reward"]
)
def test_the_package_s_own_are_found_in_any_folder(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editable installation is on no path: a hook finds it."""
    root = Path(sppo_ray.__file__).parent.parent
    monkeypatch.chdir(tmp_path)
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != root]
    monkeypatch.setattr(sys, "path", elsewhere)
    found = find_definition(path, "reward.function.function", None)
    assert found is not None and found.name == path.partition(":")[2]
