"""Reads JSON lines, or one JSON array, as a checked table. Error messages contain the number of
the line or entry.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo_ray.data.sources.table import MESSAGES, Fields, check_rows
from sppo_ray.errors import UserError

LONGEST_LINE = 64 << 20  # bytes
LARGEST_ARRAY = 1 << 30  # bytes; an array is read as a whole
_PARQUET_MAGIC = b"PAR1"
_BLOCK_ROWS = 8192  # rows held as Python objects before conversion to Arrow
_SCHEMA = pa.schema(
    [("prompt", MESSAGES), ("ground_truth", pa.string()), ("source", pa.string()), ("extra", pa.string())]
)


def read_jsonl(path: str, fields: Fields) -> pa.Table:
    """Read the columns of TableSource; `extra` has, as JSON, all other fields of each row and those
    of its `extra_info`.

    Blank lines are skipped. Raises UserError naming the file, the line or entry of an array (from
    1), and the field.
    """
    _refuse_parquet(path)
    unit, rows = ("entry", _entries(path)) if _is_array(path) else ("line", _objects(path))
    # Arrow's JSON parser guesses types such as dates and reports type conflicts without the line.
    batches: list[pa.RecordBatch] = []
    line_of = array("q")  # line number of each row
    block: list[dict[str, Any]] = []
    for number, row in rows:
        block.append(_example(row, fields, f"{path}: {unit} {number}"))
        line_of.append(number)
        if len(block) == _BLOCK_ROWS:
            batches.append(pa.RecordBatch.from_pylist(block, schema=_SCHEMA))
            block = []
    batches.append(pa.RecordBatch.from_pylist(block, schema=_SCHEMA))
    return check_rows(pa.Table.from_batches(batches), fields, path, lambda row: f"{unit} {line_of[row]}")


def check_first_row(path: str, fields: Fields) -> None:
    """Check the first row alone. Raises UserError as `read_jsonl` does; a file that is one array is
    left to it.
    """
    _refuse_parquet(path)
    if not _is_array(path):
        for number, row in itertools.islice(_objects(path), 1):
            _example(row, fields, f"{path}: line {number}")


def _refuse_parquet(path: str) -> None:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
            raise UserError(f"{path}: is a Parquet file, not JSON lines: set its source's type to parquet")


def _is_array(path: str) -> bool:
    """Whether a file begins with a bracket on a line of its own or before an object."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(4096).decode("utf-8", errors="ignore").removeprefix("\ufeff").split()
        return "".join(start)[:2] in ("[", "[{")
    return False


def _entries(path: str) -> Iterator[tuple[int, Any]]:
    size = os.path.getsize(path)
    if size > LARGEST_ARRAY:
        raise UserError(
            f"{path}: is an array of {size} bytes, at most {LARGEST_ARRAY} are read: write one object a line"
        )
    entries = _parsed(_decode(Path(path).read_bytes(), path).removeprefix("\ufeff"), path)
    yield from enumerate(entries, start=1)


def _objects(path: str) -> Iterator[tuple[int, Any]]:
    for number, text in _lines(path):
        yield number, _parsed(text, f"{path}: line {number}")


def _lines(path: str) -> Iterator[tuple[int, str]]:
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if len(raw) > LONGEST_LINE:
                    raise UserError(
                        f"{path}: line {number}: is longer than {LONGEST_LINE} bytes: write one object a line"
                    )
                text = _decode(raw, f"{path}: line {number}")
                if text.strip():
                    yield number, text.removeprefix("\ufeff")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): correct the path or its permissions"
        ) from None


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}): convert the file") from None


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text:  # an escape can stand for half a character, which no UTF-8 text can hold
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise UserError(f"{where}: not JSON ({error}): write one object a line") from None
    return value


def _example(row: Any, fields: Fields, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: is {_kind(row)}: write one object a line, with {fields.prompt} and "
            f"{fields.ground_truth}"
        )
    source, extra = row.get(fields.source), row.get(fields.extra)
    if not isinstance(source, (str, type(None))):
        raise UserError(f"{where}: {fields.source} is {_kind(source)}: it must be a string")
    if not isinstance(extra, (dict, type(None))):
        raise UserError(f"{where}: {fields.extra} is {_kind(extra)}: it must be an object")
    others = {name: value for name, value in row.items() if name not in fields.heads}
    return {
        "prompt": _messages(_value(row, fields.prompt, where), fields.prompt, where),
        "ground_truth": _truth(_value(row, fields.ground_truth, where), fields.ground_truth, where),
        "source": source,
        "extra": json.dumps(others | (extra or {})) if others or extra is not None else None,
    }


def _value(row: dict[str, Any], field: str, where: str) -> Any:
    node: Any = row
    for part in field.split("."):
        if not isinstance(node, dict) or part not in node:
            keys = ", ".join(node) if isinstance(node, dict) else _kind(node)
            raise UserError(
                f"{where}: no {field} (there are: {keys}): add it, or set the source's prompt_key / "
                "ground_truth_key"
            )
        node = node[part]
    return node


def _messages(prompt: Any, field: str, where: str) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    sound = isinstance(prompt, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in prompt
    )
    if not sound:
        raise UserError(
            f"{where}: {field} is {_kind(prompt)}: it must be a string or a list of {{role: text, content: "
            f"text}}"
        )
    return [{"role": m["role"], "content": m["content"]} for m in prompt]


def _truth(truth: Any, field: str, where: str) -> str | None:
    if truth is None or isinstance(truth, str):
        return truth
    if isinstance(truth, int) and not isinstance(truth, bool):
        return str(truth)
    raise UserError(
        f"{where}: {field} is {_kind(truth)}: it must be a string (or an integer), as the verifier shall "
        "compare it"
    )


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")
