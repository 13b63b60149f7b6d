"""Run-directory files that are larger than they look: sparse, packed, endless lines."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from sppo_ray.api import metrics_query
from sppo_ray.config import ParquetData
from sppo_ray.data import parquet_limits
from sppo_ray.data.parquet_limits import read_bounded
from sppo_ray.data.sources import open_sources
from sppo_ray.errors import UserError
from sppo_ray.rundir import tail
from sppo_ray.rundir.files import SMALL_FILE, RunFile, whole_lines
from sppo_ray.rundir.tail import Position, read_lines
from sppo_ray.rundir.trajectories import SCHEMA
from tests.api.run_directories import finished_run
from tests.api.test_jobs import problem

SMALL_FILES = (
    "status.json", "job.json", "submission.json", "summary.json", "config.yaml", "submitted.yaml", "run.lock",
    "control/inbox/1-a.json",
    "control/done/1-a.json", "checkpoints/step-000001/manifest.json", "evaluations/step-000009.json",
)  # fmt: skip
CALLS = ("", "/metrics", "/config", "/trajectories", "/evaluations", "/logs?tail=5", "/metrics?format=arrow")


def sparse(path: Path, size: int = 300 << 20, *, start: bytes = b"{") -> None:
    """A file of `size` bytes that takes no room on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(start)
    os.truncate(path, size)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_sparse_file_costs_neither_time_nor_memory(server: TestClient, runs: Path, name: str) -> None:
    run = finished_run(runs, "first", steps=1)
    finished_run(runs, "good", steps=1)
    sparse(run.path / name)
    before, began = peak_mib(), time.process_time()
    for call in CALLS:
        assert server.get(f"/v1/jobs/first{call}").status_code in (200, 404)
    assert "good" in [job["id"] for job in server.get("/v1/jobs").json()["jobs"]]
    assert peak_mib() - before < 100
    assert time.process_time() - began < 5.0


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "output.log"])
def test_nor_does_a_line_without_end(server: TestClient, runs: Path, name: str) -> None:
    run = finished_run(runs, "first", steps=1)
    start = (run.path / name).read_bytes() if (run.path / name).exists() else b""
    sparse(run.path / name, 60 << 20, start=start)
    with (run.path / name).open("ab") as file:
        file.write(b"\n" + json.dumps({"step": 7, "kind": "last", "reward/mean": 1.0}).encode() + b"\n")
    before = peak_mib()
    for call in (*CALLS, "/events"):
        assert server.get(f"/v1/jobs/first{call}").status_code in (200, 404)
    assert peak_mib() - before < 150
    if name == "metrics.jsonl":
        assert [row["step"] for row in server.get("/v1/jobs/first/metrics").json()["rows"]][-1] == 7


def test_reading_stops_at_the_limit_also_when_the_file_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"x" * SMALL_FILE)
    assert len(RunFile(tmp_path, "a").read()) == SMALL_FILE
    (tmp_path / "a").write_bytes(b"x" * (SMALL_FILE + 1))
    with pytest.raises(OSError, match="larger than"):
        RunFile(tmp_path, "a").read()
    look = os.fstat
    # as it was a moment ago
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result([*look(fd)[:6], 0, *look(fd)[7:]]))
    with pytest.raises(OSError, match="larger than"):
        RunFile(tmp_path, "a").read()


def test_lines_that_are_too_long_or_torn_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\n" + b"x" * 25 + b"\ntwo\n" + b"y" * 10 + b"\nthree")
    with path.open("rb") as file:
        assert list(whole_lines(file, longest=10, most=1000)) == [b"one\n", b"two\n"]
    with path.open("rb") as file:
        assert list(whole_lines(file, longest=10, most=3)) == [b"one\n"]


def test_a_follower_gets_past_a_line_that_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "LONGEST_LINE", 100)
    monkeypatch.setattr(tail, "CHUNK_BYTES", 20)
    (tmp_path / "log").write_bytes(b"one\n" + b"x" * 250 + b"\ntwo\n")
    seen, place = [], Position()
    for _ in range(20):
        piece = read_lines(RunFile(tmp_path, "log"), place, size=20)
        seen += [line for _, line in piece.lines]
        place = piece.lines[-1][0] if piece.lines else place
    assert seen[0] == b"one" and seen[-1] == b"two"


def test_an_answer_has_so_many_figures_and_says_where_to_go_on(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(runs, "first", steps=3)
    monkeypatch.setattr(metrics_query, "MOST_FIGURES", 10)
    monkeypatch.setattr(metrics_query, "MOST_NAMES", 5)
    page = metrics_query.metric_rows(run.path, names=(), first=0, last=None, limit=1000)
    assert page.next_from is not None and len(page.rows) < 5
    stream = b"".join(metrics_query.metric_stream(run.path, names=(), first=0, last=None))
    assert pa.ipc.open_stream(stream).read_all().num_columns <= 2 + 5


# ------------------------------------------------------------------------------------------ Parquet


def growing(path: Path, *, value_mib: int = 1, rows: int = 1100) -> None:
    """About 12 kB that unpack to `rows` times `value_mib`: one text in a dictionary, named again
    and again.
    """
    text = "x" * (value_mib << 20)
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))
    truth = pa.array([{"ground_truth": "1"}] * rows)
    pq.write_table(
        pa.table({"prompt": column, "reward_model": truth}), path, compression="zstd", store_schema=False
    )


def test_a_small_file_that_grows_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    growing(path)
    assert path.stat().st_size < 20_000
    before = peak_mib()
    with pytest.raises(
        UserError, match=r"bomb.parquet: unpacks to more than 64 MiB from 0\.\d+ MiB: split the file"
    ):
        open_sources([ParquetData(path=str(path))])
    assert peak_mib() - before < 400


def test_as_the_samples_of_a_run_it_is_a_404(server: TestClient, runs: Path) -> None:
    run = finished_run(runs, "first", steps=1)
    file = run.path / "trajectories" / "step-000001.parquet"
    table = pq.read_table(file)
    rows = table.take(pa.array(np.zeros(1100, np.int64)))
    text = pa.array(["x" * (1 << 20)])
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1100, np.int32)), text)
    rows = rows.set_column(
        rows.column_names.index("response_text"), pa.field("response_text", column.type), column
    )
    with pq.ParquetWriter(file, rows.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata(SCHEMA.metadata)
    assert file.stat().st_size < 100_000
    before = peak_mib()
    answer = server.get("/v1/jobs/first/trajectories?limit=1")
    assert "unpacks to more than" in problem(answer, 404, "no-samples")["detail"]
    assert peak_mib() - before < 500


def test_numbers_that_repeat_are_counted_before_they_are_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"a": pa.array(np.zeros(20_000_000, np.int64))}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="unpacks to more than 64 MiB"):
        read_bounded(path, None)


def test_what_stays_below_the_limits_comes_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "good.parquet"
    columns = {
        "a": [f"text {i}" * 20 for i in range(5000)],
        "b": [[i, i + 1] for i in range(5000)],
        "c": list(range(5000)),
    }
    table = pa.table(columns, metadata={b"k": b"v"})
    pq.write_table(table, path, row_group_size=700)
    # so that it takes several batches
    monkeypatch.setattr(parquet_limits, "ALWAYS_ALLOWED", 1 << 20)
    assert read_bounded(path, None).equals(table) and read_bounded(path, None).schema.metadata[b"k"] == b"v"
    with path.open("rb") as file:
        assert read_bounded(file, ["c", "a"]).equals(table.select(["c", "a"]))
    empty = tmp_path / "empty.parquet"
    pq.write_table(table.slice(0, 0), empty)
    assert read_bounded(empty, ["b"]).equals(table.slice(0, 0).select(["b"]))
