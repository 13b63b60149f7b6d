"""metrics.jsonl by name and step range: as rows, or as an Arrow stream that never holds more than one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sppo_ray.api.records import parse_object
from sppo_ray.api.run_files import RunFile
from sppo_ray.api.schemas import MetricRows
from sppo_ray.trainer.metrics import METRICS

BATCH_ROWS = 1024
ALWAYS = ("step", "time")
MAX_STEP = 2**53
LARGEST = 2**63 - 1  # no figure of ours is a larger integer, and Arrow takes none
ARROW = "application/vnd.apache.arrow.stream"
Row = dict[str, Any]


def metric_rows(run_dir: Path, *, names: Sequence[str], first: int, last: int | None, limit: int) -> MetricRows:
    """Rows of the steps `first` to `last`. A name may end in * for all that begin like it; no name = all.

    At most `limit` rows, but always whole steps, so that `next_from` neither repeats nor leaves out one.
    """
    rows: list[Row] = []
    seen: set[str] = set()
    next_from = None
    for row in _selected(run_dir, names, first, last):
        if len(rows) >= limit and row["step"] != rows[-1]["step"]:
            next_from = row["step"]
            break
        rows.append(row)
        seen.update(row)
    # Without validation: the rows are numbers already, and a million of them would hold the interpreter.
    return MetricRows.model_construct(names=sorted(seen.difference(ALWAYS)), rows=rows, next_from=next_from)


def metric_stream(run_dir: Path, *, names: Sequence[str], first: int, last: int | None) -> Iterator[bytes]:
    """The same as an Arrow IPC stream: step (int64), time (float64, Unix), and a nullable float64 column a metric."""
    import pyarrow as pa

    columns = sorted({name for row in _selected(run_dir, names, first, last) for name in row}.difference(ALWAYS))
    schema = pa.schema(
        [pa.field("step", pa.int64()), pa.field("time", pa.float64()), *(pa.field(name, pa.float64()) for name in columns)]
    )
    sink = _Sink()
    with pa.ipc.new_stream(sink, schema) as writer:
        batch: list[Row] = []
        for row in _selected(run_dir, names, first, last):
            batch.append(row)
            if len(batch) == BATCH_ROWS:
                writer.write_batch(_batch(pa, batch, schema))
                batch.clear()
                yield sink.take()
        if batch:
            writer.write_batch(_batch(pa, batch, schema))
    yield sink.take()


class _Sink:
    """A file that Arrow writes to and the response takes from."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def take(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data


def _batch(pa: Any, rows: list[Row], schema: Any) -> Any:
    columns = [
        pa.array([None if row.get(field.name) is None else row[field.name] for row in rows], type=field.type) for field in schema
    ]
    return pa.record_batch(columns, schema=schema)


def _selected(run_dir: Path, names: Sequence[str], first: int, last: int | None) -> Iterator[Row]:
    exact = {name for name in names if not name.endswith("*")}
    prefixes = tuple(name[:-1] for name in names if name.endswith("*"))
    for row in _rows(RunFile(run_dir, METRICS)):
        if row["step"] < first or (last is not None and row["step"] > last):
            continue
        chosen = {
            name: value
            for name, value in row.items()
            if _is_number(value) and (not names or name in exact or name in ALWAYS or (prefixes and name.startswith(prefixes)))
        }
        if len(chosen) > sum(name in chosen for name in ALWAYS) or not names:
            yield chosen


def _rows(metrics: RunFile) -> Iterator[Row]:
    """Whole rows with a step; a torn line, or one that is damaged, is left out."""
    try:
        lines = metrics.open()
    except FileNotFoundError:
        return
    with lines:
        for line in lines:
            row = parse_object(line) if line.endswith(b"\n") else None
            if row is not None and _is_whole(row.get("step")):
                yield row


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_STEP


def _is_number(value: Any) -> bool:
    """null stands for a figure that was not finite."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= LARGEST
    return value is None or isinstance(value, float)
