"""trace.json: an array of events that a viewer opens at any time."""

from __future__ import annotations

import json
from pathlib import Path

from sppo_ray.rundir.layout import TRACE
from sppo_ray.rundir.trace import TraceWriter, read_trace


def spans(events: list[dict]) -> list[tuple[str, int, int]]:
    return [(event["name"], event["tid"], event["dur"]) for event in events if event["ph"] == "X"]


def test_overlapping_calls_of_a_worker_have_a_thread_each(tmp_path: Path) -> None:
    now = 0.0
    trace = TraceWriter(tmp_path, clock=lambda: now)
    first, second = trace.span("rollout-1", "generate", requests=4), trace.span("rollout-1", "generate")
    first.__enter__()
    now = 1.0
    second.__enter__()
    now = 3.0
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    with trace.span("rollout-1", "pull_weights"):
        now = 3.5
    trace.close()
    events = read_trace(tmp_path)
    assert spans(events) == [
        ("generate", 1001, 3_000_000),
        ("generate", 1002, 2_000_000),
        ("pull_weights", 1001, 500_000),
    ]
    names = [event["args"]["name"] for event in events if event["ph"] == "M"]
    assert names == ["rollout", "rollout-1", "rollout", "rollout-1 (2)"]
    assert events[2]["args"] == {"requests": 4} and events[2]["pid"] == events[3]["pid"]


def test_a_killed_run_leaves_events_and_a_resumed_one_appends(tmp_path: Path) -> None:
    killed = TraceWriter(tmp_path)
    with killed.span("driver", "sync"):
        pass  # and never closed
    path = tmp_path / TRACE
    assert json.loads(path.read_text().rstrip().rstrip(",") + "]")  # what a viewer does
    path.write_text(path.read_text() + '{"name": "upd')
    assert [name for name, *_ in spans(read_trace(tmp_path))] == ["sync"]
    resumed = TraceWriter(tmp_path)
    with resumed.span("driver", "update"):
        pass
    resumed.close()
    assert [name for name, *_ in spans(read_trace(tmp_path))] == ["sync", "update"]
    assert path.read_text().count("[") == 1
