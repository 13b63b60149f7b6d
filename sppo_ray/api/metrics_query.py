"""Read metrics.jsonl by name and step range: as rows, or as an Arrow stream with one batch in
memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sppo_ray.api.schemas import MetricRows
from sppo_ray.rundir.metrics import served_rows

BATCH_ROWS = 1024
LONGEST_LINE = 256 * 1024  # bytes; a normal line has a few thousand
MOST_BYTES = 1 << 30  # bytes of metrics.jsonl that an answer reads
MOST_FIGURES = 10_000_000  # numbers in a JSON answer; the rest follows with next_from
MOST_NAMES = 10_000  # columns of an Arrow answer
ALWAYS = ("step", "time")
MAX_STEP = 2**53
LARGEST = 2**63 - 1  # no metric is a larger integer, and Arrow allows none
ARROW = "application/vnd.apache.arrow.stream"
Row = dict[str, Any]


def metric_rows(
    run_dir: Path, *, names: Sequence[str], first: int, last: int | None, limit: int
) -> MetricRows:
    """Return the rows of the steps `first` to `last`. A name may end in * as a prefix match; no
    name = all. At most `limit` rows, but always whole steps, so that `next_from` neither repeats
    nor skips one.
    """
    rows: list[Row] = []
    figures = 0
    seen: set[str] = set()
    next_from = None
    for row in _selected(run_dir, names, first, last):
        is_full = len(rows) >= limit or figures >= MOST_FIGURES
        if is_full and (row["step"] != rows[-1]["step"] or figures >= 2 * MOST_FIGURES):
            next_from = row["step"]
            break
        rows.append(row)
        figures += len(row)
        seen.update(row)
    # Without validation: the rows are numbers already, and validating a million would block the
    # interpreter.
    return MetricRows.model_construct(names=sorted(seen.difference(ALWAYS)), rows=rows, next_from=next_from)


def metric_stream(run_dir: Path, *, names: Sequence[str], first: int, last: int | None) -> Iterator[bytes]:
    """Return the rows as an Arrow IPC stream: step (int64), time (float64, Unix), and a nullable
    float64 column a metric.
    """
    import pyarrow as pa

    columns = _columns(_selected(run_dir, names, first, last))
    schema = pa.schema(
        [
            pa.field("step", pa.int64()),
            pa.field("time", pa.float64()),
            *(pa.field(name, pa.float64()) for name in columns),
        ]
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


def _columns(rows: Iterator[Row]) -> list[str]:
    """Return the sorted names of the metrics in `rows`, at most MOST_NAMES."""
    found: set[str] = set()
    for row in rows:
        found.update(row)
        if len(found) > MOST_NAMES:
            break
    return sorted(found.difference(ALWAYS))[:MOST_NAMES]


class _Sink:
    """A file that Arrow writes to and the response reads from."""

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
        pa.array([None if row.get(field.name) is None else row[field.name] for row in rows], type=field.type)
        for field in schema
    ]
    return pa.record_batch(columns, schema=schema)


def _selected(run_dir: Path, names: Sequence[str], first: int, last: int | None) -> Iterator[Row]:
    exact = {name for name in names if not name.endswith("*")}
    prefixes = tuple(name[:-1] for name in names if name.endswith("*"))
    for row in served_rows(run_dir, longest=LONGEST_LINE, most=MOST_BYTES):
        step = row.get("step")
        if not _is_whole(step) or step < first or (last is not None and step > last):
            continue
        chosen = {
            name: value
            for name, value in row.items()
            if _is_number(value)
            and (not names or name in exact or name in ALWAYS or (prefixes and name.startswith(prefixes)))
        }
        if len(chosen) > sum(name in chosen for name in ALWAYS) or not names:
            yield chosen


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_STEP


def _is_number(value: Any) -> bool:
    """Whether it is a number; null stands for a non-finite metric."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= LARGEST
    return value is None or isinstance(value, float)
