"""The REST API on run directories without Ray: jobs, lists, commands, deletion, problem
documents.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from sppo_ray.api.index import ENDED_EVERY
from sppo_ray.api.problems import MEDIA_TYPE
from tests.api.run_directories import LiveRun, finished_run, waiting_submission


def problem(response, status: int, kind: str | None = None) -> dict:
    """The problem document of a response, after checking its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail", "errors"}
    assert body["status"] == status
    if kind is not None:
        assert body["type"] == f"urn:sppo-ray:{kind}"
    return body


def test_a_running_job_in_full(server: TestClient, runs: Path) -> None:
    run = LiveRun(runs)
    run.evaluate(0.4)
    run.step()
    run.step()
    job = server.get("/v1/jobs/first").json()
    assert (job["id"], job["run_id"], job["state"], job["phase"]) == ("first", "first", "RUNNING", "training")
    assert (job["step"], job["steps"], job["policy_version"], job["seed"]) == (2, 60, 2, 1)
    assert job["reward"] == 0.5  # two of four
    assert (job["accuracy"], job["best_accuracy"]) == (0.4, 0.4)
    assert job["staleness"] == {"1": 4}  # sampled by version 1, trained on at version 2
    assert job["workers"] == [
        {"name": "rollout-0", "state": "HEALTHY", "version": 2, "restarts": 0, "in_flight": 3, "finished": 8}
    ]
    # 1 + 2 + 3 + 4 tokens a step
    assert (job["samples"], job["tokens"], job["seconds"]) == (8, 20, 4.0)
    assert (job["algorithm"], job["submission_id"], job["ended"], job["last_error"]) == (
        "sppo",
        None,
        None,
        None,
    )
    assert job["wanted_workers"] == 1
    run.close()


def test_a_budget_of_seconds_is_told_beside_what_was_spent_of_it(server: TestClient, runs: Path) -> None:
    run = LiveRun(runs, overrides=["--loop.budget_s=150", "--loop.steps=1000000"])
    run.step()
    job = server.get("/v1/jobs/first").json()
    assert (job["step"], job["steps"], job["seconds"], job["budget_s"]) == (1, 1_000_000, 2.0, 150.0)
    assert 'sppo_ray_job_budget_s{algorithm="sppo",job="first"} 150.0' in server.get("/metrics").text
    run.close()
    (run.path / "config.yaml").write_text(
        "loop: {budget_s: soon, steps: many}\nrollout: {workers: [2]}\nseed: x\n"
    )
    assert server.get("/v1/jobs/first").json()["budget_s"] is None


def test_every_end_of_a_job(server: TestClient, runs: Path) -> None:
    finished_run(runs, "done")
    stopped, failed, lost = (LiveRun(runs, name) for name in ("stopped", "failed", "lost"))
    stopped.finish(status="stopped")
    failed.fail(actor="learner", message="learner: gone", stack="Traceback")
    lost.vanish()
    states = {job["id"]: job["state"] for job in server.get("/v1/jobs").json()["jobs"]}
    assert states == {"done": "SUCCEEDED", "stopped": "STOPPED", "failed": "FAILED", "lost": "LOST"}
    error = server.get("/v1/jobs/failed").json()["last_error"]
    assert error == {"actor": "learner", "message": "learner: gone", "stack": "Traceback"}


def test_checkpoints_with_their_size(server: TestClient, runs: Path) -> None:
    run = LiveRun(runs)
    folder = run.path / "checkpoints" / "step-000010"
    folder.mkdir(parents=True)
    files = {"learner/a.pt": {"sha256": "", "bytes": 1000}, "critic/b.pt": {"sha256": "", "bytes": 24}}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))
    (run.path / "checkpoints" / ".writing-step-000020").mkdir()
    (checkpoint,) = server.get("/v1/jobs/first").json()["checkpoints"]
    assert (checkpoint["step"], checkpoint["bytes"]) == (10, 1024)
    assert abs(checkpoint["time"] - time.time()) < 60
    run.close()


def test_the_list_filters_and_pages(server: TestClient, runs: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        finished_run(runs, name, steps=1)
    live = LiveRun(runs, "live")
    assert server.get("/v1/jobs", params={"state": "RUNNING"}).json()["jobs"][0]["id"] == "live"
    seen, cursor = [], None
    for _ in range(3):
        page = server.get(
            "/v1/jobs", params={"limit": 2, "state": "SUCCEEDED"} | ({"cursor": cursor} if cursor else {})
        ).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        assert page["total"] == 5
    assert (seen, cursor) == (["e", "d", "c", "b", "a"], None)  # newest first
    for text, names in {
        "LIV": ["live"],
        "quick": ["live", "e", "d", "c", "b", "a"],
        "SPPO": 6,
        "nobody": [],
    }.items():
        found = server.get("/v1/jobs", params={"name": text}).json()
        assert (
            found["total"] == names
            if isinstance(names, int)
            else [job["id"] for job in found["jobs"]] == names
        )
    assert server.get("/v1/jobs", params={"name": "a", "state": "SUCCEEDED"}).json()["total"] == 5
    both = server.get("/v1/jobs", params={"state": ["RUNNING", "SUCCEEDED"]}).json()
    assert (both["total"], both["ray"]) == (6, "down")
    problem(server.get("/v1/jobs", params={"cursor": "nobody"}), 422)
    problem(server.get("/v1/jobs", params={"state": "HAPPY"}), 422)
    live.close()


def test_nothing_outside_the_runs_is_shown(server: TestClient, runs: Path, tmp_path: Path) -> None:
    finished_run(tmp_path / "elsewhere", "secret", steps=1)
    (runs / "link").symlink_to(tmp_path / "elsewhere" / "secret")
    (runs / "no-run").mkdir()
    assert server.get("/v1/jobs").json()["total"] == 0
    for name in (
        "link",
        "no-run",
        "..",
        "../elsewhere/secret",
        "%2e%2e%2felsewhere%2fsecret",
        "a\0b",
        "x" * 5000,
    ):
        assert server.get(f"/v1/jobs/{name.replace(chr(0), '%00')}").status_code == 404


def test_commands_reach_the_inbox_and_their_outcome_the_job(server: TestClient, runs: Path) -> None:
    run = LiveRun(runs)
    run.step()
    job = server.patch("/v1/jobs/first", json={"rollout_workers": 2, "paused": True})
    assert job.status_code == 202
    assert [(c["kind"], c["rollout_workers"], c["outcome"], c["by"]) for c in job.json()["commands"]] == [
        ("scale", 2, "waiting", "local"),
        ("pause", None, "waiting", "local"),
    ]
    assert [command["kind"] for command in run.answer_commands("refused", "the run is stopping already")] == [
        "scale",
        "pause",
    ]
    assert {c["detail"] for c in server.get("/v1/jobs/first").json()["commands"]} == {
        "the run is stopping already"
    }
    assert server.post("/v1/jobs/first/checkpoint").json()["commands"][-1]["kind"] == "checkpoint"
    assert server.patch("/v1/jobs/first", json={"paused": False}).json()["commands"][-1]["kind"] == "resume"
    assert server.post("/v1/jobs/first/stop").json()["state"] == "STOPPING"
    assert [command["kind"] for command in run.answer_commands()] == ["checkpoint", "resume", "stop"]
    problem(server.post("/v1/jobs/first/stop", params={"force": True}), 409, "not-submitted")
    run.close()


def test_commands_that_make_no_sense(server: TestClient, runs: Path) -> None:
    finished_run(runs, "done", steps=1)
    waiting_submission(runs, "waiting")
    bounded = LiveRun(runs, "bounded", overrides=["--rollout.max_workers=3"])
    problem(server.post("/v1/jobs/done/stop"), 409, "ended")
    problem(server.patch("/v1/jobs/done", json={"paused": True}), 409, "ended")
    problem(server.post("/v1/jobs/waiting/checkpoint"), 409, "not-begun")
    problem(server.post("/v1/jobs/nobody/stop"), 404, "unknown-job")
    assert problem(server.patch("/v1/jobs/bounded", json={}), 422)["errors"][0]["path"] == "body"
    too_many = problem(server.patch("/v1/jobs/bounded", json={"rollout_workers": 4}), 422, "out-of-bounds")
    assert too_many["errors"][0] == {
        "path": "body.rollout_workers",
        "message": "4 is outside rollout.min_workers and max_workers of this job (1 to 3)",
    }
    assert (
        problem(server.patch("/v1/jobs/bounded", json={"rollout_workers": 0}), 422)["errors"][0]["path"]
        == "body.rollout_workers"
    )
    assert (
        problem(server.patch("/v1/jobs/bounded", json={"workers": 2}), 422)["errors"][0]["path"]
        == "body.workers"
    )
    bounded.close()


def test_a_job_is_deleted_with_its_files_once_it_has_ended(server: TestClient, runs: Path) -> None:
    finished_run(runs, "done", steps=1)
    live = LiveRun(runs, "live")
    problem(server.delete("/v1/jobs/live"), 409, "not-ended")
    assert server.delete("/v1/jobs/done").status_code == 204
    problem(server.get("/v1/jobs/done"), 404, "unknown-job")
    assert [path.name for path in runs.iterdir()] == ["live"]
    live.close()


def test_without_ray_reading_works_and_submitting_says_when_to_try_again(
    server: TestClient, runs: Path
) -> None:
    finished_run(runs, "done", steps=1)
    waiting_submission(runs, "waiting")
    response = server.post("/v1/jobs", json={"recipe": "quickstart"})
    problem(response, 503, "ray-down")
    assert response.headers["retry-after"] == "5"
    assert problem(server.post("/v1/jobs/waiting/stop"), 503, "ray-down")
    assert server.get("/v1/jobs/done").json()["state"] == "SUCCEEDED"
    assert server.get("/readyz").json()["status"] == "degraded"
    # what Ray did not take leaves nothing
    assert sorted(path.name for path in runs.iterdir()) == ["done", "waiting"]


@pytest.mark.parametrize(
    ("body", "status", "kind", "path"),
    [
        ({"recipe": "quickstart", "overrides": {"loop.stepz": 3}}, 422, "invalid-settings",
        "body.overrides.loop.stepz"),
        ({"recipe": "quickstart", "overrides": {"loop.steps": "x"}}, 422, "invalid-settings",
        "body.overrides.loop.steps"),
        ({"recipe": "quickstart", "run_name": "../x"}, 422, "invalid-request", "body.run_name"),
        ({"recipe": "quickstart", "steps": 3}, 422, "invalid-request", "body.steps"),
        ({"recipe": "/etc/passwd"}, 400, "path-outside", "body.recipe"),
        ({"recipe": "quickstart", "overrides": {"learner.model": "../../etc"}}, 400, "path-outside",
        "learner.model"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_ray_is_asked(
    server: TestClient, runs: Path, body: dict, status: int, kind: str, path: str
) -> None:
    assert problem(server.post("/v1/jobs", json=body), status, kind)["errors"][0]["path"] == path
    assert not list(runs.iterdir())


def test_runs_that_cannot_be_read_make_the_server_unready(server: TestClient, runs: Path) -> None:
    runs.rmdir()
    response = server.get("/readyz")
    assert "mounted" in problem(response, 503, "not-ready")["detail"]
    assert response.headers["retry-after"] == "5"
    assert server.get("/healthz").status_code == 200
    assert server.get("/v1/jobs").json()["total"] == 0


def test_a_server_that_starts_anew_shows_the_same(make_server: Callable[..., TestClient], runs: Path) -> None:
    finished_run(runs, "done")
    lost = LiveRun(runs, "lost")
    lost.step()
    lost.vanish()
    first = {job["id"]: job for job in make_server().get("/v1/jobs").json()["jobs"]}
    again = {job["id"]: job for job in make_server().get("/v1/jobs").json()["jobs"]}
    assert first == again
    assert len(first) == 2


def test_a_run_that_has_ended_is_seen_to_go_on(server: TestClient, runs: Path) -> None:
    run = LiveRun(runs)
    run.finish(status="stopped")
    assert server.get("/v1/jobs/first").json()["state"] == "STOPPED"
    again = {"submission_id": "first-again", "created": time.time() + 1, "recipe": "quickstart"}
    (run.path / "submission.json").write_text(json.dumps(again))
    index = server.app.state.services.index  # type: ignore[attr-defined]
    assert asyncio.run(index.renewed("first-again")).job.state == "PENDING"  # right after a command
    (run.path / "submission.json").unlink()
    # by and by
    assert {server.get("/v1/jobs/first").json()["state"] for _ in range(ENDED_EVERY + 1)} >= {"STOPPED"}


def test_half_written_and_foreign_files_do_no_harm(server: TestClient, runs: Path) -> None:
    run = LiveRun(runs)
    run.step()
    for name, text in {
        "job.json": '{"pid": ',
        "summary.json": "[]",
        "submission.json": "\0",
        "config.yaml": "{a: [",
        "run.lock": "?",
    }.items():
        (run.path / name).write_text(text)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "reward/me')
    (run.path / "control" / "inbox").mkdir(parents=True)
    (run.path / "control" / "inbox" / "1-x.json").write_text("{")
    job = server.get("/v1/jobs/first").json()
    assert (job["state"], job["step"], job["reward"], job["commands"]) == ("RUNNING", 1, 0.5, [])
    run.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1", 404),
        ("PUT", "/v1/jobs", 405),
        ("TRACE", "/v1/jobs/x", 405),
        ("GET", "/v1/jobs/", 404),
    ],
)
def test_the_frameworks_own_errors_are_problems_too(
    server: TestClient, method: str, path: str, status: int
) -> None:
    response = server.request(method, path)
    problem(response, status)
    assert ("allow" in response.headers) == (status == 405)


def test_a_failure_of_the_server_is_a_problem_without_details(
    make_server: Callable[..., TestClient], runs: Path
) -> None:
    server = make_server()
    server.app.state.services.index.runs = object()  # type: ignore[attr-defined]
    body = problem(server.get("/v1/jobs"), 500, "internal")
    assert "object" not in body["detail"]


@pytest.mark.parametrize("body", [b'{"recipe": ', b"\xff\xfe", b"[" * 100_000, b"null", b"[]", b'"x"', b""])
def test_a_body_that_is_no_object_is_a_422(server: TestClient, body: bytes) -> None:
    response = server.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert problem(response, 422)["errors"][0]["path"] == "body"


def test_types_are_taken_as_they_are(server: TestClient) -> None:
    for body in ({"recipe": "quickstart", "resume": 0}, {"recipe": 3}, {"recipe": "quickstart", "seed": "1"}):
        problem(server.post("/v1/jobs", json=body), 422)


def test_prometheus(server: TestClient, runs: Path) -> None:
    run = LiveRun(runs)
    run.step()
    finished_run(runs, "done", steps=1)
    text = server.get("/metrics").text
    assert 'sppo_ray_jobs{state="RUNNING"} 1.0' in text
    assert 'sppo_ray_jobs{state="SUCCEEDED"} 1.0' in text
    assert 'sppo_ray_job_reward{algorithm="sppo",job="first"} 0.5' in text
    assert 'sppo_ray_job_workers{job="first",state="HEALTHY"} 1.0' in text
    assert "sppo_ray_ray_up 0.0" in text
    run.close()


def test_recipes(server: TestClient) -> None:
    recipes = {recipe["name"]: recipe for recipe in server.get("/v1/recipes").json()["recipes"]}
    assert recipes["quickstart"]["model"] == "builtin:running-sum"
    assert recipes["quickstart"]["summary"].startswith("The embedded default")
