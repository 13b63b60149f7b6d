"""A run's records over REST: metrics, samples, evaluations, settings, logs, and events of an ended
run.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from sppo_ray.api.archive import entries_of, tar_of
from sppo_ray.api.client import Event, lines_of, parse_events
from sppo_ray.rundir import tail
from sppo_ray.rundir.files import RunFile
from sppo_ray.rundir.trajectories import to_table, write_step
from tests.api.run_directories import LiveRun, finished_run, waiting_submission
from tests.api.test_jobs import problem
from tests.unit.rundir.test_trajectories import episode


def events_of(response) -> list[Event]:
    assert response.headers["content-type"].startswith("text/event-stream")
    return list(parse_events(iter(response.text.split("\n"))))


def test_metrics_by_name_and_range(server: TestClient, runs: Path) -> None:
    finished_run(runs, "done", steps=5)
    everything = server.get("/v1/jobs/done/metrics").json()
    # an evaluation first and last
    assert [row["step"] for row in everything["rows"]] == [0, 1, 2, 3, 4, 5, 5]
    assert {"reward/mean", "policy/loss", "eval/accuracy", "value/pearson"} <= set(everything["names"])
    some = server.get("/v1/jobs/done/metrics", params={"name": "reward/mean", "from": 2, "to": 3}).json()
    assert some["names"] == ["reward/mean"]
    # + step, time
    assert [(row["step"], row["reward/mean"], len(row)) for row in some["rows"]] == [(2, 0.5, 3), (3, 0.5, 3)]
    held_out = server.get("/v1/jobs/done/metrics", params={"name": "eval/acc*"}).json()
    assert [row["eval/accuracy"] for row in held_out["rows"]] == [0.4, 0.7]
    assert server.get("/v1/jobs/done/metrics", params={"name": "nothing"}).json() == {
        "names": [],
        "rows": [],
        "next_from": None,
    }


@pytest.mark.parametrize("text", ["1.0", "+1", " 1", "-1", "1e3", "\u0661", "", "null", "9" * 30])
def test_a_step_is_written_in_digits(server: TestClient, runs: Path, text: str) -> None:
    finished_run(runs, "done", steps=1)
    assert (
        problem(server.get("/v1/jobs/done/metrics", params={"from": text}), 422)["errors"][0]["path"]
        == "query.from"
    )


def test_metrics_in_portions_lose_and_repeat_nothing(server: TestClient, runs: Path) -> None:
    finished_run(runs, "done", steps=5)
    whole = server.get("/v1/jobs/done/metrics").json()["rows"]
    rows, start = [], 0
    while start is not None:
        page = server.get("/v1/jobs/done/metrics", params={"limit": 2, "from": start}).json()
        rows += page["rows"]
        start = page["next_from"]
    assert rows == whole


def test_metrics_as_arrow_are_the_same_numbers(server: TestClient, runs: Path) -> None:
    finished_run(runs, "done", steps=5)
    response = server.get("/v1/jobs/done/metrics", params={"format": "arrow"})
    assert response.headers["content-type"] == "application/vnd.apache.arrow.stream"
    table = pa.ipc.open_stream(response.content).read_all()
    answer = server.get("/v1/jobs/done/metrics").json()
    assert table.column_names == ["step", "time", *answer["names"]]
    rows = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
    assert rows == [
        {name: value for name, value in row.items() if value is not None} for row in answer["rows"]
    ]


def test_samples_sorted_by_surprise_and_paged(server: TestClient, runs: Path) -> None:
    run = LiveRun(runs)
    run.step()
    page = server.get("/v1/jobs/first/trajectories", params={"limit": 3}).json()
    # |R - V| of FOUR: .1, .8, .5, 0
    assert [item["index"] for item in page["items"]] == [1, 2, 0]
    assert [round(item["surprise"], 6) for item in page["items"]] == [0.8, 0.5, 0.1]
    assert (page["step"], page["total"], page["next_cursor"]) == (1, 4, "3")
    rest = server.get("/v1/jobs/first/trajectories", params={"limit": 3, "cursor": "3"}).json()
    assert ([item["index"] for item in rest["items"]], rest["next_cursor"]) == ([3], None)
    first = page["items"][0]
    assert (first["prompt"], first["response"], first["reward"], first["reason"]) == (
        "<s>a1b5=",
        "12",
        0.0,
        "wrong",
    )
    assert (first["value"], first["advantage"], first["tokens"], first["ground_truth"]) == (
        0.8,
        -0.8,
        2,
        "12",
    )
    orders = {
        ("length", "asc"): [0, 1, 2, 3],  # 1 to 4 tokens
        ("reward", "desc"): [0, 2, 1, 3],  # ties as in the file
        ("index", "desc"): [3, 2, 1, 0],
        ("surprise", "asc"): [3, 0, 2, 1],
    }
    for (sort, order), expected in orders.items():
        answer = server.get("/v1/jobs/first/trajectories", params={"sort": sort, "order": order}).json()
        assert [item["index"] for item in answer["items"]] == expected
    run.close()


def test_an_episode_is_served_turn_by_turn(server: TestClient, runs: Path) -> None:
    run = LiveRun(runs)
    run.step()
    write_step(run.path, to_table(2, [episode()], 4))
    (item,) = server.get("/v1/jobs/first/trajectories").json()["items"]
    assert item["turns"] == [
        {"is_action": True, "text": "8", "tokens": 1, "reward": 0.0},
        {"is_action": False, "text": "+", "tokens": 2, "reward": None},
        {"is_action": True, "text": "12", "tokens": 1, "reward": 1.0},
    ]
    first = server.get("/v1/jobs/first/trajectories", params={"step": 1}).json()["items"][0]
    assert first["turns"] == []
    run.close()


def test_samples_without_a_critic_come_last_and_missing_steps_are_404(server: TestClient, runs: Path) -> None:
    run = LiveRun(runs)
    problem(server.get("/v1/jobs/first/trajectories"), 404, "no-samples")
    run.step([(1.0, None), (1.0, 0.5)])
    run.step()
    page = server.get("/v1/jobs/first/trajectories", params={"step": 1}).json()
    assert [(item["index"], item["surprise"]) for item in page["items"]] == [(1, 0.5), (0, None)]
    assert (page["first_step"], page["last_step"]) == (1, 2)
    assert (
        "recorded are 1 to 2"
        in problem(server.get("/v1/jobs/first/trajectories", params={"step": 9}), 404)["detail"]
    )
    problem(server.get("/v1/jobs/first/trajectories", params={"cursor": "-1"}), 422)
    assert server.get("/v1/jobs/first/trajectories", params={"cursor": "999"}).json()["items"] == []
    (run.path / "trajectories" / "step-000003.parquet").write_bytes(b"no parquet")
    assert (
        str(runs) not in problem(server.get("/v1/jobs/first/trajectories", params={"step": 3}), 404)["detail"]
    )
    run.close()


def test_evaluations_in_full(server: TestClient, runs: Path) -> None:
    finished_run(runs, "done", steps=2, accuracy=0.9)
    found = server.get("/v1/jobs/done/evaluations").json()["evaluations"]
    assert [(entry["step"], entry["overall"]["accuracy"]) for entry in found] == [(0, 0.4), (2, 0.9)]


def test_settings_without_their_secrets(server: TestClient, runs: Path) -> None:
    run = finished_run(runs, "done", steps=1)
    text = (
        run.run_dir.config.read_text()
        + "hub:\n  api_key: abcdefgh12345\n  note: 'token hf_abcdefghijklmnopqr'\n"
    )
    run.run_dir.config.write_text(text)
    answer = server.get("/v1/jobs/done/config").json()
    assert answer["settings"]["loop"]["steps"] == 60
    assert answer["settings"]["hub"] == {"api_key": "[redacted]", "note": "token [redacted]"}
    # has "token" in its name and is no secret
    assert answer["settings"]["learner"]["max_tokens_per_microbatch"] == 2048
    assert "abcdefgh12345" not in answer["yaml"]
    waiting_submission(runs, "waiting")
    problem(server.get("/v1/jobs/waiting/config"), 404, "no-config")


def test_the_log_from_its_end_and_without_secrets(server: TestClient, runs: Path) -> None:
    run = finished_run(runs, "done", steps=1)
    (run.path / "output.log").write_text(
        "one\ntwo\nAuthorization: Bearer abcdefghijkl\nthree \xe9\nlast, unfinished", encoding="latin-1"
    )
    assert server.get("/v1/jobs/done/logs", params={"tail": 2}).text == "three \ufffd\nlast, unfinished"
    whole = server.get("/v1/jobs/done/logs")
    assert whole.headers["content-type"].startswith("text/plain")
    assert whole.text.startswith("one\ntwo\nAuthorization: Bearer [redacted]\n")
    assert server.get("/v1/jobs/done/logs", params={"follow": True, "tail": 1}).text == "last, unfinished"
    assert server.get("/v1/jobs/done/logs", params={"tail": 0}).text == ""
    run = finished_run(runs, "local", steps=1)
    problem(server.get("/v1/jobs/local/logs"), 404, "no-log")
    waiting_submission(runs, "waiting")
    problem(server.get("/v1/jobs/waiting/logs"), 503, "ray-down")


def test_events_of_a_run_that_has_ended(server: TestClient, runs: Path) -> None:
    finished_run(runs, "done", steps=3)
    events = events_of(server.get("/v1/jobs/done/events"))
    assert [event.kind for event in events] == [
        "state",
        "evaluation",
        "step",
        "step",
        "step",
        "evaluation",
        "event",
        "end",
    ]
    assert [event.data["step"] for event in events if event.kind == "step"] == [1, 2, 3]
    assert events[-1].data == {"state": "SUCCEEDED"}
    # Taken up again anywhere, it goes on with the next one.
    for place, event in enumerate(events[1:-1], start=1):
        rest = server.get("/v1/jobs/done/events", headers={"Last-Event-ID": event.id})
        if place < len(events) - 2:
            assert [e.id for e in events_of(rest) if e.kind not in ("state", "end")] == [
                e.id for e in events[place + 1 : -1]
            ]
        else:
            assert rest.status_code == 204  # nothing is left: an EventSource does not come back
    garbage = events_of(server.get("/v1/jobs/done/events", headers={"Last-Event-ID": b"zz.-1-\xe9"}))
    assert len(garbage) == len(events)


def test_events_after_the_run_was_taken_up_at_an_earlier_step(server: TestClient, runs: Path) -> None:
    run = finished_run(runs, "done", steps=3)
    seen = events_of(server.get("/v1/jobs/done/events"))
    from sppo_ray.rundir.metrics import MetricsWriter

    with MetricsWriter(run.path) as writer:
        assert writer.truncate_after(1) == 3  # steps 2, 3 and the evaluation of step 3
        writer.write(2, {"reward/mean": 0.75, "seconds/step": 1.0})
    again = events_of(server.get("/v1/jobs/done/events", headers={"Last-Event-ID": seen[-1].id}))
    assert [event.kind for event in again] == ["state", "reset", "evaluation", "step", "step", "end"]
    assert again[-2].data["reward/mean"] == 0.75


def test_too_many_streams_are_turned_away(make_server: Callable[..., TestClient], runs: Path) -> None:
    finished_run(runs, "done", steps=1)
    server = make_server(max_streams=1)
    services = server.app.state.services  # type: ignore[attr-defined]
    with services.streams.one("token olga"):
        response = server.get("/v1/jobs/done/events")
        problem(response, 429, "too-many-streams")
        assert response.headers["retry-after"] == "10"
    assert server.get("/v1/jobs/done/events").status_code == 200
    assert services.streams.open == 0


def test_lines_come_in_bounded_pieces_and_a_torn_one_waits(tmp_path: Path) -> None:
    path, file = tmp_path / "x", RunFile(tmp_path, "x")
    path.write_bytes(b"a\nbb\n" + b"c" * 300_000 + b"\nhalf")
    piece = tail.read_lines(file, tail.Position(), size=4)
    assert [line for _, line in piece.lines] == [b"a"]  # 4 bytes hold one whole line
    place = piece.lines[-1][0]
    assert place.offset == 2
    sizes = []
    while piece.lines:
        piece = tail.read_lines(file, place, size=4)
        sizes += [len(line) for _, line in piece.lines]
        place = piece.lines[-1][0] if piece.lines else place
    assert sizes == [2, 300_000]
    with path.open("ab") as more:
        more.write(b" now whole\n")
    assert [line for _, line in tail.read_lines(file, place).lines] == [b"half now whole"]
    assert tail.Position.parse(str(place)) == place


def test_a_tail_begins_at_a_line(tmp_path: Path) -> None:
    path, file = tmp_path / "x", RunFile(tmp_path, "x")
    path.write_bytes(b"1\n22\n333\n")
    starts = [tail.tail_position(file, lines).offset for lines in (0, 1, 2, 3, 99)]
    assert starts == [9, 5, 2, 0, 0]
    path.write_bytes(b"1\n22\n333")
    assert [tail.tail_position(file, lines).offset for lines in (1, 2)] == [5, 2]
    assert tail.tail_position(RunFile(tmp_path, "none"), 5) == tail.Position()


def test_events_stay_json_whatever_is_blacked_out_in_them(server: TestClient, runs: Path) -> None:
    run = LiveRun(runs, overrides=["--name=a\u2028b"])
    run.recorder.event("note", 'bad config "api_key=abcdef" given')
    run.recorder.event("note", 'password="hunter2"')
    run.recorder.event("note", "one\u2028two\u0085three \U0001f600 hf_ABCDEFGHIJKLMNOP")
    with (run.path / "events.jsonl").open("a") as file:
        file.write("no JSON\n" + '{"a":' * 900 + "1" + "}" * 900 + "\n[]\n")
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('torn {\n{"step": 1, "seconds/step": NaN, "a\u2028": 1}\n')
    run.finish()
    response = server.get("/v1/jobs/first/events")
    assert response.content.isascii()
    events = list(parse_events(iter(response.text.splitlines())))
    told = [
        event.data["message"] for event in events if event.kind == "event" and event.data["kind"] == "note"
    ]
    assert told == [
        'bad config "api_key=[redacted]" given',
        'password="[redacted]"',
        "one\u2028two\x85three \U0001f600 [redacted]",
    ]
    assert [event.data for event in events if event.kind == "step"] == [
        {"step": 1, "seconds/step": None, "a\u2028": 1}
    ]
    assert events[0].data["name"] == "a\u2028b" and events[-1].kind == "end"


def test_the_client_cuts_a_stream_into_lines_as_servers_send_them() -> None:
    assert list(lines_of(iter(["a\u2028b\x85", "c\r\nd", "\n\n"]))) == ["a\u2028b\x85c", "d", ""]


def test_a_long_answer_does_not_hold_up_the_others(
    make_server: Callable[..., TestClient], runs: Path
) -> None:
    """3,000 rows of 90 metrics, 1,000 lines of log: meanwhile the event loop goes on."""
    run = finished_run(runs, "done", steps=1)
    row = {f"metric/{i}": i / 7 for i in range(90)}
    lines = (json.dumps({"step": step, "time": 1.0, "reward/mean": 0.5, **row}) for step in range(3000))
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run.path / "output.log").write_text("step 1 reward 0.5, and what else there is to say\n" * 1000)
    application = make_server(refresh_s=60.0).app
    turns: list[float] = []

    async def beat() -> None:
        while True:
            await asyncio.sleep(0.001)
            turns.append(time.perf_counter())

    async def scene() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=application, client=("127.0.0.1", 5000))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            await client.get("/v1/jobs/done")
            beating = asyncio.create_task(beat())
            answers = [await client.get(f"/v1/jobs/done/{what}") for what in ("metrics", "logs")]
            beating.cancel()
        return answers

    metrics, log = asyncio.run(scene())
    assert len(metrics.json()["rows"]) == 3000 and len(log.text.splitlines()) == 1000
    # An answer that is made in one piece on the event loop leaves it two or three turns.
    assert len(turns) > 20, f"the event loop had {len(turns)} turns while the answers were made"


# ---------------------------------------------------------------------------------------- downloads


def test_the_export_is_one_tar_and_the_report_one_page_that_no_browser_opens_here(
    server: TestClient, runs: Path
) -> None:
    run = finished_run(runs, "done", steps=1)
    nothing = server.get("/v1/jobs/done/downloads").json()
    assert nothing == {"export": None, "report": None}
    problem(server.get("/v1/jobs/done/export"), 404, "no-export")
    assert "sppo-ray report" in problem(server.get("/v1/jobs/done/report"), 404, "no-report")["detail"]
    files = {
        "policy/config.json": b"{}",
        "policy/model.safetensors": bytes(1500),
        "critic/config.json": b"[1]",
    }
    for name, content in files.items():
        path = run.run_dir.export / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    os.mkfifo(run.run_dir.export / "policy" / "pipe")  # is no file
    (run.path / "report.html").write_text("<script>")
    assert server.get("/v1/jobs/done/downloads").json() == {
        "export": {"name": "done-export.tar", "bytes": 2 + 1500 + 3, "files": 3},
        "report": {"name": "done-report.html", "bytes": 8, "files": 1},
    }
    answer = server.get("/v1/jobs/done/export")
    assert answer.headers["content-disposition"] == 'attachment; filename="done-export.tar"'
    # three headers, contents of 1, 3 and 1 blocks, two blocks of zeros
    assert answer.headers["content-length"] == str(512 * (3 + 5 + 2)) == str(len(answer.content))
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert found == {f"done/{name}": content for name, content in files.items()}
    page = server.get("/v1/jobs/done/report")
    assert page.text == "<script>" and page.headers["content-disposition"].startswith("attachment")
    assert page.headers["content-security-policy"] == "sandbox"


def test_a_file_that_shrinks_while_it_is_sent_tears_the_archive(runs: Path) -> None:
    (runs / "export").mkdir()
    (runs / "export" / "a").write_bytes(bytes(3 << 20))
    pieces = tar_of(entries_of(runs, ["export/a"], below="export/", root="r"))
    next(pieces), next(pieces)  # the header, the first MiB
    os.truncate(runs / "export" / "a", 1 << 20)
    with pytest.raises(OSError, match="shorter"):
        list(pieces)
