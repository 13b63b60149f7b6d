"""Malformed and excessive requests, and pages of a list that changes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from sppo_ray.api.services import Visit
from sppo_ray.api.settings import ApiSettings
from sppo_ray.api.tokens import add_token
from sppo_ray.cli.main import main
from sppo_ray.rundir.tail import Position
from tests.api.run_directories import LiveRun, finished_run
from tests.api.test_jobs import problem


@pytest.mark.parametrize("origin", ["http://[x", "http://[::1", "//[", "http://]"])
def test_an_origin_that_is_no_url_is_a_foreign_page(server: TestClient, origin: str) -> None:
    problem(server.post("/v1/jobs", json={}, headers={"Origin": origin}), 403)


def test_a_host_that_is_none_is_refused_and_breaks_nothing(
    make_server: Callable[..., TestClient], runs: Path, tmp_path: Path
) -> None:
    for path in ("/v1/jobs", "/healthz", "/nowhere"):
        problem(make_server().get(path, headers={"Host": "[x"}), 403)
    token = add_token(tmp_path / "tokens", "eve", "viewer")
    known = {"Host": "[x", "Authorization": f"Bearer {token}"}
    server = make_server(tokens=tmp_path / "tokens")
    assert server.get("/v1/jobs", headers=known).status_code == 200
    problem(server.get("/nowhere", headers=known), 404)


@pytest.mark.parametrize(
    "place", ["0." + "9" * 30 + "-0.0", "1." + "9" * 30 + "-0.0", "f" * 40 + ".5-0.0", "0.5-0.5"]
)
def test_a_place_beyond_every_file_is_the_beginning(server: TestClient, runs: Path, place: str) -> None:
    finished_run(runs, "done", steps=1)
    answer = server.get("/v1/jobs/done/events", headers={"Last-Event-ID": place})
    assert answer.status_code == 200 and "event: step" in answer.text
    assert Position.parse("0.5") is None and Position.parse("0.0") == Position()


def test_of_deletions_at_once_one_wins_and_the_others_find_nothing(
    make_server: Callable[..., TestClient], runs: Path
) -> None:
    finished_run(runs, "done", steps=1)
    application = make_server().app

    async def scene() -> list[int]:
        transport = httpx.ASGITransport(
            app=application, client=("127.0.0.1", 5000), raise_app_exceptions=False
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            answers = await asyncio.gather(*(client.delete("/v1/jobs/done") for _ in range(4)))
        return sorted(answer.status_code for answer in answers)

    assert asyncio.run(scene()) == [204, 404, 404, 404]


# ------------------------------------------------------------------------------------------ streams


def test_one_caller_cannot_take_every_stream(
    make_server: Callable[..., TestClient], runs: Path, tmp_path: Path
) -> None:
    finished_run(runs, "done", steps=1)
    one, two = (
        {"Authorization": f"Bearer {add_token(tmp_path / 'tokens', name, 'viewer')}"}
        for name in ("one", "two")
    )
    server = make_server(tokens=tmp_path / "tokens", max_streams=3, max_streams_per_caller=2)
    streams = server.app.state.services.streams  # type: ignore[attr-defined]
    with streams.one("token one"), streams.one("token one"):
        refused = server.get("/v1/jobs/done/events", headers=one)
        assert "--max-streams-per-caller" in problem(refused, 429, "too-many-streams")["detail"]
        assert refused.headers["retry-after"] == "10"
        assert server.get("/v1/jobs/done/events", headers=two).status_code == 200
        with streams.one("token three"):
            assert "all callers" in problem(server.get("/v1/jobs/done/events", headers=two), 429)["detail"]
        assert streams.open == 2
    assert server.get("/v1/jobs/done/events", headers=one).status_code == 200
    assert streams.open == 0


def test_without_tokens_an_address_is_a_caller(make_server: Callable[..., TestClient], runs: Path) -> None:
    finished_run(runs, "done", steps=1)
    server = make_server(max_streams_per_caller=1)
    with server.app.state.services.streams.one("address 127.0.0.1"):  # type: ignore[attr-defined]
        problem(server.get("/v1/jobs/done/events"), 429, "too-many-streams")
    assert ApiSettings(runs=runs).max_streams_per_caller == 64
    assert Visit("x", lambda: True).share == "x"


# ------------------------------------------------------------------------------------------- paging


def of_ray_job(runs: Path, name: str, submission_id: str, started: float) -> None:
    path = runs / name
    path.mkdir()
    job = {"submission_id": submission_id, "started": started}
    (path / "job.json").write_text(json.dumps(job))
    (path / "status.json").write_text('{"phase": "finished"}')


def pages(server: TestClient, **query: object) -> list[str]:
    seen: list[str] = []
    cursor = None
    for _ in range(10):
        page = server.get(
            "/v1/jobs", params={"limit": 1, **query} | ({"cursor": cursor} if cursor else {})
        ).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return seen
    raise AssertionError(f"without end: {seen}")


def test_runs_of_one_ray_job_are_told_apart_by_their_run_ids(server: TestClient, runs: Path) -> None:
    for name, submission, started in (
        ("aa", "raysubmit_1", 10.0),
        ("bb", "raysubmit_1", 10.0),
        ("cc", "raysubmit_2", 5.0),
    ):
        of_ray_job(runs, name, submission, started)
    assert pages(server) == ["bb", "aa", "raysubmit_2"]
    for name in ("aa", "bb"):
        job = server.get(f"/v1/jobs/{name}").json()
        assert (job["id"], job["run_id"], job["submission_id"]) == (name, name, "raysubmit_1")
    assert "aa, bb" in problem(server.get("/v1/jobs/raysubmit_1"), 404, "several-runs")["detail"]
    problem(server.delete("/v1/jobs/raysubmit_1"), 404, "several-runs")
    assert (
        server.get("/v1/jobs/raysubmit_2").json()["run_id"]
        == "cc"
        == server.get("/v1/jobs/cc").json()["run_id"]
    )


def test_a_submission_id_that_is_another_runs_name_is_not_its_id(server: TestClient, runs: Path) -> None:
    of_ray_job(runs, "aa", "bb", 10.0)
    of_ray_job(runs, "bb", "raysubmit_2", 5.0)
    assert pages(server) == ["aa", "raysubmit_2"]
    assert server.get("/v1/jobs/bb").json()["run_id"] == "bb"


def test_a_cursor_outlives_its_jobs_leaving_the_list(server: TestClient, runs: Path) -> None:
    finished_run(runs, "old", steps=1)
    live = LiveRun(runs, "live")
    first = server.get("/v1/jobs", params={"limit": 1, "state": ["RUNNING", "SUCCEEDED"]}).json()
    assert first["jobs"][0]["id"] == "live"
    live.finish(status="stopped")
    rest = server.get(
        "/v1/jobs", params={"state": ["RUNNING", "SUCCEEDED"], "cursor": first["next_cursor"]}
    ).json()
    assert ([job["id"] for job in rest["jobs"]], rest["next_cursor"]) == (["old"], None)


@pytest.mark.parametrize("cursor", ["nobody", "nan,a", "inf,a", ",", "1.0", "x,y"])
def test_what_is_no_cursor_is_told(server: TestClient, cursor: str) -> None:
    assert (
        "begin again"
        in problem(server.get("/v1/jobs", params={"cursor": cursor}), 422, "invalid-request")["detail"]
    )


# ----------------------------------------------------------------------------------------- start-up


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto"])
def test_an_address_without_a_scheme_is_refused_at_the_start(
    runs: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--runs", str(runs), "--ray-address", address]) == 2
    said = capsys.readouterr().err
    assert "ray_address" in said and "write it with http:// or https://, e.g. http://127.0.0.1:8265" in said


def test_a_taken_port_is_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--runs", str(runs), "--port", str(port)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: serve: cannot listen at 127.0.0.1:{port} (Address already in use): ")


def test_a_directory_of_runs_that_is_not_there_is_made_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: sockets[0].close())
    runs = tmp_path / "runs"
    for said in (f"{runs} did not exist and was made: it has no runs yet", f"sppo-ray serves {runs} at"):
        assert main(["serve", "--runs", str(runs), "--port", "0"]) == 0
        assert runs.is_dir() and capsys.readouterr().out.startswith(said)
