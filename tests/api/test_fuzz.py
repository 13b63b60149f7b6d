"""A short run of Schemathesis against the server process; the long one is `python -m tests.api.fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppo_ray.api.tokens import add_token
from tests.api.conftest import NO_RAY, serving
from tests.api.fuzz import fuzz
from tests.api.run_directories import finished_run

# Ray is away: what needs it is a 503 by rights. The long run has a head.
NEED_RAY = ("--exclude-operation-id", "submit_job")


@pytest.mark.timeout(600)
def test_no_server_error_and_no_answer_outside_the_document(runs: Path, tmp_path: Path) -> None:
    token = add_token(tmp_path / "tokens", "fuzz", "operator")
    finished_run(runs, "first", steps=2)
    with serving(runs, "--tokens", str(tmp_path / "tokens"), "--ray-address", NO_RAY, "--rate", "0") as (url, _):
        code, cases, output = fuzz(url, token, examples=3, seed=1, folder=tmp_path, options=NEED_RAY)
    assert code == 0, output
    assert cases >= 100
