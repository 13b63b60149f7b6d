"""Runs each curl command of docs/api.md and docs/operations.md against a real server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from tests.api.documented import curls, run_curl
from tests.api.run_directories import LiveRun

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
COMMANDS = curls("api.md") + curls("operations.md")
# What Ray's job server has to do; test_control_plane.py sends the same with one. Here it is away.
SUBMITS, FORCES = ("-X POST $API/v1/jobs ", "--json "), "stop?force=true"
ENDED = ("-X DELETE", "curl -N", "resume")  # these want a run that has ended


def expected(command: str) -> int:
    if any(words in command for words in SUBMITS):
        return 503
    if FORCES in command:
        return 409  # the run below was not submitted to Ray
    if "-X DELETE" in command:
        return 204
    return 202 if "-X PATCH" in command or "-X POST" in command else 200


def test_the_pages_have_commands() -> None:
    assert len(curls("api.md")) >= 25
    assert len(curls("operations.md")) == 1


@pytest.mark.parametrize(
    "number", range(len(COMMANDS)), ids=lambda number: COMMANDS[number].partition("\n")[0][:60]
)
def test_a_documented_call_works(live: tuple[str, Path, str], tmp_path: Path, number: int) -> None:
    url, runs, token = live
    command, name = COMMANDS[number], f"case-{number}"
    run = LiveRun(runs, name)
    steps = 12 if "step=12" in command else 2
    for _ in range(steps):
        run.step()
    (run.path / "output.log").write_text("one\ntwo\n")
    (run.path / "export").mkdir()
    (run.path / "export" / "a").write_text("one")
    (run.path / "report.html").write_text("<p>")
    if any(words in command for words in ENDED):
        run.evaluate(0.5)
        run.finish(status="stopped")
    command = command.replace("/jobs/first", f"/jobs/{name}").replace('"first"', f'"{name}"')
    status, body = run_curl(command, url=url, token=token, folder=tmp_path)
    assert status == expected(command), f"{command}: {body}"
    if "events" in command:
        assert "event: step" in body and "event: end" in body
    if "logs" in command:
        assert body.startswith("one\ntwo")
    if "-o export.tar" in command:
        assert (tmp_path / "export.tar").stat().st_size == 2048
    if "-o metrics.arrow" in command:
        assert pa.ipc.open_stream((tmp_path / "metrics.arrow").read_bytes()).read_all()[
            "step"
        ].to_pylist() == [1, 2]
    run.close()
