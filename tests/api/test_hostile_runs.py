"""Malicious or damaged run directories: none hides another, and none exposes files outside of
it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from sppo_ray.api import index
from sppo_ray.rundir.files import NO_FILE, RunFile, names_in
from tests.api.run_directories import LiveRun, finished_run
from tests.api.test_jobs import problem


def damaged(path: Path, **files: str) -> None:
    path.mkdir()
    for name, text in files.items():
        (path / f"{name}.json").write_text(text)


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
HUGE = "9" * 400  # no float holds it


@pytest.mark.parametrize(
    "files",
    [
        {"job": '{"submission_id": 5, "started": 1.0}'},
        {
            "status": f'{{"phase": "training", "state": {{"step": {HUGE}, "seconds": {HUGE}}}, "eta_s": '
            f'{HUGE}, "steps": {HUGE}}}'
        },
        {"status": f'{{"heartbeat": {HUGE}}}', "job": f'{{"started": {HUGE}}}'},
        {"status": DEEP},
        {"status": '{"state": "none", "fleet": {"a": 1}, "eta_s": "soon", "alerts": {}}'},
        {"status": '{"fleet": ["torn"], "actors": [null], "pending": 3}'},
        {
            "status": "{}",
            "job": '{"started": "yesterday"}',
            "submission": '{"submission_id": "s", "created": 1.0}',
        },
        {"submission": '{"submission_id": {"a": 1}, "created": [], "metadata": 3}'},
        {"job": '{"entrypoint": "bash -c \'sppo-ray train \\"x\'"}'},
        {"status": '{"name": "\\ud800"}'},  # half a character: no JSON can be sent of it
    ],
)
def test_a_damaged_run_does_not_hide_the_others(
    server: TestClient, runs: Path, files: dict[str, str]
) -> None:
    finished_run(runs, "good", steps=1)
    damaged(runs / "bad", **files)
    listed = server.get("/v1/jobs")
    assert listed.status_code == 200, listed.text
    assert "good" in [job["id"] for job in listed.json()["jobs"]]
    assert server.get("/v1/jobs/good").json()["state"] == "SUCCEEDED"
    assert server.get("/v1/jobs/bad").status_code in (200, 404)


def test_what_is_no_text_is_no_submission_id(server: TestClient, runs: Path) -> None:
    damaged(runs / "bad", job='{"submission_id": 5}')
    job = server.get("/v1/jobs/bad").json()
    assert (job["id"], job["submission_id"]) == ("bad", None)


def test_a_damaged_status_counts_as_not_written(server: TestClient, runs: Path) -> None:
    damaged(runs / "bad", status=f'{{"phase": "training", "state": {{"step": {HUGE}, "samples": 7}}}}')
    job = server.get("/v1/jobs/bad").json()
    assert (job["state"], job["phase"], job["step"], job["samples"]) == ("LOST", "unknown", 0, 0)


def test_whatever_a_run_runs_into_is_logged_once_and_the_others_are_shown(
    server: TestClient, runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bad", "good"):
        finished_run(runs, name, steps=1)
    read = index.read_record

    def fails(path: Path, *before: object) -> object:
        if path.name == "bad":
            raise ZeroDivisionError("odd")
        return read(path, *before)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "read_record", fails)
    for _ in range(3):
        assert [job["id"] for job in server.get("/v1/jobs").json()["jobs"]] == ["good"]
    problem(server.get("/v1/jobs/bad"), 404, "unknown-job")
    assert [record.getMessage() for record in caplog.records if "left out" in record.getMessage()] == [
        "run bad is left out of the list: fix or remove its directory"
    ]


def test_a_directory_that_may_not_be_looked_into_is_no_run(
    server: TestClient, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another user's of mode 0700; root, who may run this test, is let in anywhere."""
    finished_run(runs, "good", steps=1)
    (runs / "private").mkdir()
    look = os.stat

    def refuses(path: object, **options: object) -> os.stat_result:
        if str(path).startswith(f"{runs}/private/"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refuses)
    assert [job["id"] for job in server.get("/v1/jobs").json()["jobs"]] == ["good"]
    problem(server.get("/v1/jobs/private"), 404)


# -------------------------------------------------------------------------------------------- links


SECRET = "the-secret-of-another"
CALLS = (
    "", "/logs", "/metrics", "/config", "/trajectories", "/evaluations", "/metrics?format=arrow",
    "/downloads", "/export", "/report",
)  # fmt: skip


def linked(run: Path, name: str, outside: Path) -> None:
    """`run`/`name` as a link to `outside`, whatever was there."""
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(outside)


@pytest.mark.parametrize(
    "name",
    [
        "output.log", "metrics.jsonl", "events.jsonl", "status.json", "config.yaml", "submitted.yaml",
        "job.json",
        "submission.json", "run.lock", "evaluations/step-000001.json", "trajectories/step-000001.parquet",
        "control/inbox/1-a.json", "control/done/1-a.json", "checkpoints/step-000001/manifest.json",
        "report.html", "export/policy/config.json",
    ],
)  # fmt: skip
def test_a_link_to_a_file_elsewhere_is_not_followed(
    server: TestClient, runs: Path, tmp_path: Path, name: str
) -> None:
    run = finished_run(runs, "first", steps=1)
    secret = tmp_path / "secret"
    secret.write_text(
        json.dumps({"step": 1, "id": SECRET, "kind": SECRET, "phase": SECRET, "name": SECRET, SECRET: 1.0})
        + "\n"
    )
    linked(run.path, name, secret)
    for call in (*CALLS, "/events") if name in ("metrics.jsonl", "events.jsonl") else CALLS:
        answer = server.get(f"/v1/jobs/first{call}")
        assert answer.status_code in (200, 404), answer.text
        assert SECRET.encode() not in answer.content, call


FOLDERS = ("evaluations", "trajectories", "control", "control/done", "checkpoints", "export", "export/policy")


@pytest.mark.parametrize("folder", FOLDERS)
def test_nor_is_a_link_to_a_folder(server: TestClient, runs: Path, tmp_path: Path, folder: str) -> None:
    run, other = LiveRun(runs), LiveRun(tmp_path / "elsewhere", "other")
    other.step(response=SECRET)
    other.evaluate(0.5)
    (other.path / "checkpoints" / "step-000001").mkdir(parents=True)
    (other.path / "checkpoints" / "step-000001" / "manifest.json").write_text(
        '{"files": {"a": {"bytes": 777777}}}'
    )
    (other.path / "export" / "policy").mkdir(parents=True)
    (other.path / "export" / "policy" / "config.json").write_text(SECRET)
    (other.path / "control" / "done").mkdir(parents=True)
    (other.path / "control" / "done" / "1-a.json").write_text(json.dumps({"id": SECRET, "kind": "stop"}))
    linked(run.path, folder, other.path / folder)
    for call in CALLS:
        answer = server.get(f"/v1/jobs/first{call}")
        assert answer.status_code in (200, 404), answer.text
        assert SECRET.encode() not in answer.content and b"777777" not in answer.content, call
    if folder == "evaluations":
        assert server.get("/v1/jobs/first/evaluations").json() == {"evaluations": []}
    run.close()
    other.close()


def test_a_command_is_not_written_through_a_link(server: TestClient, runs: Path, tmp_path: Path) -> None:
    run, elsewhere = LiveRun(runs), tmp_path / "elsewhere"
    run.step()
    elsewhere.mkdir()
    assert not (run.path / "control").exists()
    (run.path / "control").symlink_to(elsewhere)
    for answer in (server.post("/v1/jobs/first/stop"), server.patch("/v1/jobs/first", json={"paused": True})):
        assert "is a link" in problem(answer, 409, "no-inbox")["detail"]
    assert not any(elsewhere.rglob("*"))
    run.close()


def test_the_directory_of_runs_may_be_a_link(
    make_server: Callable[..., TestClient], runs: Path, tmp_path: Path
) -> None:
    finished_run(runs, "done", steps=1)
    (tmp_path / "link").symlink_to(runs)
    server = make_server(runs=tmp_path / "link")
    assert server.get("/v1/jobs/done").json()["state"] == "SUCCEEDED"
    assert len(server.get("/v1/jobs/done/metrics").json()["rows"]) == 3


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "folder").mkdir(parents=True)
    (run / "file").write_text("text")
    (run / "link").symlink_to(run / "file")  # not even within
    (run / "there").symlink_to(run / "folder")
    os.mkfifo(run / "fifo")  # opened in the ordinary way, it would wait for a writer
    assert RunFile(run, "file").read() == b"text"
    for name in ("link", "fifo", "folder", "none", "there/x", "file/x", "none/x"):
        with pytest.raises(FileNotFoundError):
            RunFile(run, name).open()
    assert RunFile(run, "link").stamp() == RunFile(run, "none").stamp() == NO_FILE
    assert names_in(run, "there") == names_in(run, "none") == names_in(run, "file") == []
    (run / "folder" / "b").touch()
    (run / "folder" / "a").touch()
    assert names_in(run, "folder") == ["a", "b"]
