"""requirements/trackers.lock and the extra `trackers`. `make test-trackers` checks that it is
closed.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[3]


def test_the_lock_is_sorted_and_has_the_extra() -> None:
    text = (REPOSITORY / "requirements" / "trackers.lock").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == sorted(lines, key=str.lower)
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(pins) == len(lines)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for wanted in map(Requirement, project["optional-dependencies"]["trackers"]):
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)])
