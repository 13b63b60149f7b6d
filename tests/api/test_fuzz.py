"""A short run of Schemathesis against the server process; the long one is `python -m
tests.api.fuzz`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sppo_ray.api.tokens import add_token
from tests.api.attacks import Target, attack
from tests.api.conftest import NO_RAY, serving
from tests.api.fuzz import fuzz
from tests.api.run_directories import finished_run

# Ray is away: what needs it is a 503 by rights. The long run has a head.
NEED_RAY = ("--exclude-operation-id", "submit_job")


@pytest.mark.timeout(600)
def test_no_server_error_and_no_answer_outside_the_document(runs: Path, tmp_path: Path) -> None:
    token = add_token(tmp_path / "tokens", "fuzz", "operator")
    finished_run(runs, "first", steps=2)
    with serving(runs, "--tokens", str(tmp_path / "tokens"), "--ray-address", NO_RAY, "--rate", "0") as (
        url,
        _,
    ):
        code, cases, output = fuzz(url, token, examples=3, seed=1, folder=tmp_path, options=NEED_RAY)
    assert code == 0, output
    assert cases >= 100


@pytest.mark.timeout(600)
def test_attacks_of_each_kind_are_answered_as_they_deserve(runs: Path, tmp_path: Path) -> None:
    token, shared = add_token(tmp_path / "tokens", "fuzz", "operator"), tmp_path / "shared"
    shared.mkdir()
    finished_run(runs, "first", steps=2)
    options = (
        "--tokens",
        str(tmp_path / "tokens"),
        "--ray-address",
        NO_RAY,
        "--rate",
        "0",
        "--allow",
        str(shared),
    )
    with serving(runs, *options) as (url, _):
        assert attack(Target(url, token, runs, shared, random.Random(1)), rounds=6) == []
