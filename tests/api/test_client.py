"""The client against the OpenAPI document, and client and command line against a real server."""

from __future__ import annotations

import inspect
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from sppo_ray.api import schemas
from sppo_ray.api.app import create_app
from sppo_ray.api.client import ApiError, Client, Event
from sppo_ray.api.schemas import JobPatch, JobRequest
from sppo_ray.api.settings import ApiSettings
from sppo_ray.api.tokens import add_token
from sppo_ray.cli.job_text import describe, harmless
from sppo_ray.cli.main import main
from sppo_ray.errors import UserError
from tests.api.conftest import NO_RAY, free_port, serving
from tests.api.run_directories import LiveRun, finished_run

RENAMED = {"from": "first", "to": "last", "Last-Event-ID": "last_event_id", "last-event-id": "last_event_id"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return create_app(ApiSettings(runs=tmp_path_factory.mktemp("runs"))).openapi()


def operations(document: dict) -> Iterator[tuple[str, str, dict]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


# ------------------------------------------------------------------------------------- the document


def test_every_operation_has_a_method_with_its_parameters(document: dict) -> None:
    for _, _, operation in operations(document):
        method = getattr(Client, operation["operationId"])
        known = set(inspect.signature(method).parameters)
        parameters = {RENAMED.get(p["name"], p["name"]) for p in operation.get("parameters", [])} - {"format"}
        assert parameters <= known, operation["operationId"]
        assert ("requestBody" in operation) == bool(known & {"request", "change"}), operation["operationId"]


def test_what_a_method_returns_is_what_the_document_says(document: dict) -> None:
    for _, _, operation in operations(document):
        answers = [entry for status, entry in operation["responses"].items() if status.startswith("2")]
        schema = answers[0].get("content", {}).get("application/json", {}).get("schema", {})
        if "$ref" in schema:
            returned = inspect.signature(getattr(Client, operation["operationId"])).return_annotation
            assert schema["$ref"].rsplit("/", 1)[1] == returned, operation["operationId"]


def test_the_document_is_complete(document: dict) -> None:
    for path, method, operation in operations(document):
        where = f"{method} {path}"
        assert operation["description"], where
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], f"{where} {parameter['name']}"
        for status, response in operation["responses"].items():
            assert response["description"], where
            for media_type, content in response.get("content", {}).items():
                if status.startswith("2"):
                    is_binary = content["schema"].get("format") == "binary"
                    assert "example" in content or is_binary, where
                else:
                    assert (media_type, "example" in content) == ("application/problem+json", True), (
                        f"{where} {status}"
                    )
        if path.startswith("/v1"):
            assert {"401", "403", "422", "429"} <= set(operation["responses"]), where
        if "{job_id}" in path:
            assert "404" in operation["responses"], where
    assert document["components"]["schemas"].keys() >= {"Job", "Problem", "FieldError"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_examples_fit_their_schemas(document: dict) -> None:
    models = {
        name: getattr(schemas, name) for name in document["components"]["schemas"] if hasattr(schemas, name)
    }
    checked = 0
    for _, _, operation in operations(document):
        for response in operation["responses"].values():
            for content in response.get("content", {}).values():
                reference = content.get("schema", {}).get("$ref", "").rsplit("/", 1)[-1]
                if reference in models and "example" in content:
                    models[reference].model_validate(content["example"])
                    checked += 1
    assert checked > 50
    for name in ("JobRequest", "JobPatch"):
        for example in document["components"]["schemas"][name]["examples"]:
            models[name].model_validate(example)


# ------------------------------------------------------------------------------------ a real server


def test_the_client_reads_everything(live: tuple[str, Path, str]) -> None:
    url, runs, token = live
    finished_run(runs, "read", steps=3)
    with Client(url, token=token) as client:
        assert client.get_job("read").state == "SUCCEEDED"
        assert "read" in [
            job.id for job in client.list_jobs(state=[schemas.JobState.SUCCEEDED], limit=10).jobs
        ]
        assert [row["step"] for row in client.metrics("read", name=["reward/mean"], first=2).rows] == [2, 3]
        # an Arrow message
        assert client.metrics_arrow("read", name=["reward/mean"])[:4] == b"\xff\xff\xff\xff"
        assert client.trajectories("read", limit=1).items[0].index == 1
        assert [entry["step"] for entry in client.evaluations("read").evaluations] == [0, 3]
        assert client.config("read").settings["seed"] == 1
        (runs / "read" / "export").mkdir()
        (runs / "read" / "export" / "a").write_text("one")
        (runs / "read" / "report.html").write_text("<p>")
        assert client.downloads("read").export == schemas.Download(name="read-export.tar", bytes=3, files=1)
        # header, padded content, two blocks of zeros
        assert len(b"".join(client.export("read"))) == 512 + 512 + 1024
        assert client.report("read") == "<p>"
        assert [event.kind for event in client.event_stream("read")][-1] == "end"
        assert {recipe.name for recipe in client.recipes().recipes} >= {"quickstart"}
        assert (client.healthz().status, client.readyz().status) == ("ok", "degraded")
        assert 'sppo_ray_job_step{algorithm="sppo",job="read"} 3.0' in client.prometheus()
        with pytest.raises(ApiError, match="Ray's job server") as caught:
            client.submit_job(JobRequest(recipe="quickstart"))
        assert caught.value.problem.status == 503
        client.delete_job("read")
        with pytest.raises(ApiError, match="there is no job 'read'"):
            client.get_job("read")


def test_errors_are_one_message(live: tuple[str, Path, str]) -> None:
    url, _, _ = live
    with Client(url, token="wrong") as client, pytest.raises(UserError, match="no valid token"):
        client.list_jobs()
    nobody = f"http://127.0.0.1:{free_port()}"
    with Client(nobody) as client, pytest.raises(UserError, match=r"does not answer .*sppo-ray serve"):
        client.list_jobs()
    with pytest.raises(UserError, match="--url"):
        Client("localhost:8642")


def test_many_clients_follow_a_live_run_and_scaling_comes_back_to_them(live: tuple[str, Path, str]) -> None:
    """Eight streams at once; each sees every step once, in order, while the run goes on."""
    url, runs, token = live
    run = LiveRun(runs, "followed")
    run.step()
    seen: list[list[Event]] = [[] for _ in range(8)]

    def follow(events: list[Event]) -> None:
        with Client(url, token=token) as client:
            events += client.event_stream("followed")

    threads = [threading.Thread(target=follow, args=(events,)) for events in seen]
    for thread in threads:
        thread.start()
    for _ in range(3):
        run.step()
        time.sleep(0.3)
    with Client(url, token=token) as client:
        client.patch_job("followed", JobPatch(rollout_workers=2))
        run.answer_commands(detail="2 workers wanted, was 1")
        time.sleep(2.5)  # a look at the directory and one at the job
    run.evaluate(0.9)
    run.finish()
    for thread in threads:
        thread.join(timeout=30)
    for events in seen:
        assert [event.data["step"] for event in events if event.kind == "step"] == [1, 2, 3, 4]
        assert [event.data["eval/accuracy"] for event in events if event.kind == "evaluation"] == [0.9]
        states = [event.data for event in events if event.kind == "state"]
        assert any(
            c["outcome"] == "done" and c["rollout_workers"] == 2
            for state in states
            for c in state["commands"]
        )
        assert (states[-1]["state"], events[-1].kind) == ("SUCCEEDED", "end")


def test_a_log_is_followed_until_the_run_has_ended(live: tuple[str, Path, str]) -> None:
    url, runs, token = live
    run = LiveRun(runs, "logged")
    seen: list[str] = []

    def follow() -> None:
        with Client(url, token=token) as client:
            seen.extend(client.log("logged", tail=1, follow=True))

    with (run.path / "output.log").open("w") as log:
        print("before\none", file=log, flush=True)
        thread = threading.Thread(target=follow)
        thread.start()
        deadline = time.monotonic() + 30
        while not seen and time.monotonic() < deadline:
            time.sleep(0.1)
        print("two", file=log, flush=True)
    run.finish()
    thread.join(timeout=30)
    assert "".join(seen) == "one\ntwo\n"


def test_a_revoked_token_ends_what_is_open(runs: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    add_token(tokens, "stays", "viewer")
    line = tokens.read_text()
    token = add_token(tokens, "goes", "viewer")
    run = LiveRun(runs)
    run.step()
    seen: list[Event] = []
    with (
        serving(runs, "--tokens", str(tokens), "--ray-address", NO_RAY) as (url, _),
        Client(url, token=token) as client,
    ):
        with pytest.raises(ApiError, match="no valid token"):
            for event in client.event_stream("first"):
                seen.append(event)
                if event.kind == "event":  # the last of what is recorded
                    tokens.write_text(line)
                    time.sleep(1.5)  # RECHECK_S is 1
                    run.step()
        with pytest.raises(ApiError, match="no valid token"):
            client.get_job("first")
    assert [event.data["step"] for event in seen if event.kind == "step"] == [1]
    run.close()


def test_a_stream_survives_a_killed_server(runs: Path) -> None:
    port = free_port()
    run = LiveRun(runs)
    run.step()
    events: list[Event] = []
    options = ("--ray-address", NO_RAY)
    with serving(runs, *options, port=port) as (url, process):

        def follow() -> None:
            with Client(url) as client:
                events.extend(client.event_stream("first"))

        thread = threading.Thread(target=follow)
        thread.start()
        with Client(url) as client:
            assert client.get_job("first").state == "RUNNING"
        time.sleep(1.5)
        process.kill()
        process.wait()
    run.step()
    with serving(runs, *options, port=port):
        run.step()
        run.finish()
        thread.join(timeout=60)
    assert [event.data["step"] for event in events if event.kind == "step"] == [1, 2, 3]
    assert events[-1].data == {"state": "SUCCEEDED"}


def test_the_command_line(live: tuple[str, Path, str], capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    url, runs, token = live
    monkeypatch.setenv("SPPO_RAY_API", url)
    monkeypatch.setenv("SPPO_RAY_API_TOKEN", token)
    run = LiveRun(runs, "mine")
    run.step()

    def sppo_ray(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    code, shown = sppo_ray("status", "mine")
    assert "rollout-0 healthy v1" in shown and "RUNNING (training" in shown
    code, shown = sppo_ray("list", "--state", "running")
    assert (code, shown.splitlines()[1].split()[:4]) == (0, ["mine", "RUNNING", "1/60", "0.500"])
    assert sppo_ray("scale", "mine", "--rollout-workers", "3") == (
        0,
        "mine: scale asked for, the job is RUNNING\n",
    )
    assert (
        sppo_ray("pause", "mine")[0]
        == sppo_ray("resume", "mine")[0]
        == sppo_ray("checkpoint", "mine")[0]
        == 0
    )
    assert sppo_ray("stop", "mine")[1] == "mine: stop asked for, the job is STOPPING\n"
    kinds = [(command["kind"], command["by"]) for command in run.answer_commands()]
    assert kinds == [(kind, "olga") for kind in ("scale", "pause", "resume", "checkpoint", "stop")]
    run.finish(status="stopped")
    code, shown = sppo_ray("status", "mine", "--watch")
    assert (code, "step 1/60  reward 0.500" in shown) == (1, True)  # it did not succeed
    code, shown = sppo_ray("status", "mine", "--json")
    assert schemas.Job.model_validate_json(shown).state == "STOPPED"
    assert sppo_ray("delete", "mine") == (
        2,
        "error: delete removes metrics, samples and checkpoints: say --yes\n",
    )
    assert sppo_ray("delete", "mine", "--yes") == (0, "deleted mine\n")
    code, shown = sppo_ray("stop", "mine")
    assert (code, shown) == (2, "error: there is no job 'mine': GET /v1/jobs lists them\n")
    code, shown = sppo_ray("submit", "quickstart", "--loop.stepz=3")
    assert (code, "did you mean steps?" in shown) == (2, True)
    code, shown = sppo_ray("submit", "quickstart", "--loop.steps=3")
    assert (code, "Ray's job server" in shown) == (2, True)
    assert "no settings" in sppo_ray("list", "--loop.steps=3")[1]
    assert "--state HAPPY" in sppo_ray("list", "--state", "happy")[1]
    assert "greater than or equal to 1" in sppo_ray("scale", "mine", "--rollout-workers", "0")[1]


@pytest.mark.parametrize(
    ("step", "steps", "seconds", "budget_s", "shown"),
    [
        (12, 60, 35.0, None, "12/60"),
        (14, 1_000_000, 35.0, 150.0, "14 (23%)"),  # 35/150 = .233
        (30, 60, 35.0, 150.0, "30/60"),  # the steps end first: 30/60 > 35/150
        (100, 1_000_000, 151.2, 150.0, "100 (100%)"),
        (3, None, 0.0, None, "3/?"),
    ],
)
def test_how_far_a_job_is(
    step: int, steps: int | None, seconds: float, budget_s: float | None, shown: str
) -> None:
    progress = {"step": step, "steps": steps, "seconds": seconds, "budget_s": budget_s}
    job = schemas.Job(id="a", name="a", state=schemas.JobState.RUNNING, phase="training", **progress)
    assert f"step         {shown}\n" in describe(job) + "\n"


def test_a_new_engine_has_no_version_and_a_paused_run_no_time_left() -> None:
    workers = [
        schemas.Worker(name="rollout-0", state="HEALTHY", version=3),
        schemas.Worker(name="rollout-1", state="RESTARTING"),
    ]
    error = schemas.LastError(actor="learner-0", message="learner-0: gone")
    told = {"phase": "training", "step": 3, "steps": 60, "workers": workers, "last_error": error}
    text = describe(schemas.Job(id="a", name="a", state=schemas.JobState.RUNNING, eta_s=3222.0, **told))
    assert "rollout-0 healthy v3, rollout-1 restarting\n" in text
    assert "3/60, about 53m42s left" in text
    assert "error        learner-0: gone" in text  # the name once


def test_what_a_model_wrote_does_not_steer_a_terminal() -> None:
    assert (
        harmless("50%\r100%\r\n\tdone\x1b[2J\x07\x9b1m\u202e √")
        == "50%\n100%\n\tdone\\x1b[2J\\x07\\x9b1m\\u202e √"
    )
    # no second line of ours
    assert harmless("note: a\nRUNNING", lines=False) == "note: a\\nRUNNING"


def test_a_token_is_made_and_shown_once(tmp_path: Path, capsys) -> None:
    path = tmp_path / "tokens"
    assert main(["token", "olga", "--role", "operator", "--tokens", str(path)]) == 0
    token = capsys.readouterr().out.strip()
    client = TestClient(create_app(ApiSettings(runs=tmp_path, tokens=path, ray_address=NO_RAY)))
    assert client.get("/v1/jobs", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_the_documentation_has_curl_for_each_call_and_no_other(document: dict) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    shown = set()
    for line in text.splitlines():
        found = re.match(r"curl (?:-N )?(?:-X (?P<method>\w+) )?\"?\$API(?P<path>/[^\s?\"]*)", line)
        if found:
            path = re.sub(r"^/v1/jobs/first", "/v1/jobs/{job_id}", found["path"])
            shown.add(((found["method"] or "GET").lower(), path))
    assert shown == {(method, path) for path, method, _ in operations(document)}
