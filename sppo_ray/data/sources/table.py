"""Holds the examples of one file as an Arrow table. Whole columns are checked on opening."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sppo_ray.errors import UserError
from sppo_ray.types import Example

ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass(frozen=True, slots=True)
class Fields:
    """The column names of a format. A dot separates a struct from its field."""

    prompt: str = "prompt"  # a string, or list<struct<role: string, content: string, ...>>
    ground_truth: str = "reward_model.ground_truth"  # a string or an integer
    source: str = "data_source"  # optional string
    extra: str = "extra_info"  # optional struct
    others: tuple[str, ...] = ()  # columns whose values join those of `extra`

    @property
    def heads(self) -> set[str]:
        """The columns that contain these fields."""
        fields = (self.prompt, self.ground_truth, self.source, self.extra)
        return {field.split(".")[0] for field in fields} | set(self.others)

    def columns_in(self, present: Sequence[str]) -> list[str]:
        """Return the columns in `present` that contain these fields."""
        return [column for column in present if column in self.heads]


class TableSource:
    """A checked table with the columns prompt, ground_truth: string, and optionally source: string
    and extra.

    `extra` is a struct, or a JSON object as a string (for JSON lines, where keys differ by row).
    """

    procedural = False

    def __init__(self, table: pa.Table, name: str, *, label: str | None, first_row: int = 0) -> None:
        """`label` replaces the data_source of each row. `first_row` is the number of row 0 in ids;
        it counts the rows of earlier files.
        """
        self.name = name
        self._table = table
        self._label = label
        self._first_row = first_row

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, row: int) -> Example:
        return self.examples([row])[0]

    def examples(self, rows: Sequence[int]) -> list[Example]:
        """Return the examples of `rows`. Raises IndexError for a row outside [0, len)."""
        picked = self._table.take(pa.array(rows, pa.int64())).to_pylist()
        return [self._example(row, record) for row, record in zip(rows, picked, strict=True)]

    def _example(self, row: int, record: dict) -> Example:
        prompt, extra = record["prompt"], record.get("extra") or {}
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return Example(
            id=f"{self.name}/{self._first_row + row}",
            source=self._label or record.get("source") or self.name,
            messages=tuple({"role": m["role"], "content": m["content"]} for m in messages),
            ground_truth=record["ground_truth"],
            extra=json.loads(extra) if isinstance(extra, str) else extra,
        )


def rows_table(rows: Any, origin: str) -> pa.Table:
    """Return rows as an Arrow table: a list of dicts, an Arrow table, a Hugging Face dataset, a
    data frame. Raises UserError that begins with `origin`.
    """
    try:
        if isinstance(rows, pa.Table):
            return rows
        if isinstance(rows, Sequence) and not isinstance(rows, str):
            return pa.Table.from_pylist([_with_extra(dict(row)) for row in rows])
        if hasattr(rows, "with_format"):  # datasets.Dataset
            return rows.with_format("arrow")[:]
        return pa.table(rows)  # pandas, polars and others, by Arrow's own interface
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(
            f"{origin}: is not a table ({error}): give a list of dicts, an Arrow table, a Hugging Face "
            "dataset or a data frame, whose columns have one type each"
        ) from None


def _with_extra(row: dict[str, Any]) -> dict[str, Any]:
    """Move fields that no column is for into `extra_info`, as `read_jsonl` does. A row with a
    mistake stays as it is, so that the message names its fields.
    """
    columns, extra = Fields().heads | {"ground_truth"}, row.get("extra_info")
    others = {name: value for name, value in row.items() if name not in columns}
    if not others or "prompt" not in row or not isinstance(extra, dict | None):
        return row
    return {name: row[name] for name in row if name in columns} | {"extra_info": others | (extra or {})}


def fields_of(columns: Sequence[str]) -> Fields:
    """Return the fields of a table without settings: `ground_truth` where that is a column, else
    the field's common format, and all other columns as `others`.
    """
    fields = Fields(ground_truth="ground_truth") if "ground_truth" in columns else Fields()
    return replace(fields, others=tuple(column for column in columns if column not in fields.heads))


def rows_source(rows: Any, name: str) -> TableSource:
    """Return a source of rows with `prompt` and `ground_truth`, for a plugin's `open`. Raises
    UserError naming row and field.
    """
    table = rows_table(rows, name)
    fields = fields_of(table.column_names)
    require_fields(table.schema, fields, name)
    return TableSource(checked_table(table, fields, name), name, label=None)


def require_fields(schema: pa.Schema, fields: Fields, path: str) -> None:
    """Raise UserError with the most similar name when the prompt, the ground truth or one of the
    others has no column, and for a column that occurs twice.
    """
    for column in fields.columns_in(schema.names):
        if schema.names.count(column) > 1:
            raise UserError(
                f"{path}: the column {column!r} occurs {schema.names.count(column)} times: rename or remove "
                "all but one"
            )
    for column in fields.others:
        if column not in schema.names:
            raise UserError(
                f"{path}: no column {column!r} ({_nearest(column, schema.names)}): correct the source's "
                "extra_columns"
            )
    for field in (fields.prompt, fields.ground_truth):
        head, *inner = field.split(".")
        names = schema.names
        if head not in names:
            raise UserError(
                f"{path}: no column {head!r} ({_nearest(head, names)}): rename it, or name it in the "
                "source's prompt_key and ground_truth_key"
            )
        kind = schema.field(head).type
        for part in inner:
            names = [child.name for child in kind] if pa.types.is_struct(kind) else []
            if part not in names:
                raise UserError(
                    f"{path}: no field {field!r} ({_nearest(part, names)} in {head}, a {kind}): rename it, "
                    "or name it in the source's prompt_key and ground_truth_key"
                )
            kind = kind.field(part).type


def checked_table(raw: pa.Table, fields: Fields, path: str) -> pa.Table:
    """Check every row of `raw` and return the columns that TableSource reads.

    Call `require_fields` first. Raises UserError naming file, row (from 0) and field.
    """
    columns = {"prompt": _column(raw, fields.prompt), "ground_truth": _column(raw, fields.ground_truth)}
    if fields.source in raw.column_names:
        columns["source"] = _column(raw, fields.source)
        _check_type(columns["source"].type, _is_text, f"{path}: {fields.source}", "a string")
    if fields.extra in raw.column_names:
        columns["extra"] = raw[fields.extra]
        _check_type(columns["extra"].type, pa.types.is_struct, f"{path}: {fields.extra}", "a struct")
    if fields.others:
        columns["extra"] = _joined(raw, fields.others, columns.get("extra"))
    return check_rows(pa.table(columns), fields, path, "row {}".format)


def check_rows(table: pa.Table, fields: Fields, path: str, row_name: Callable[[int], str]) -> pa.Table:
    """Check every row of a table with the columns of TableSource; return it with ground truths as
    strings.

    `row_name(i)` names row i in messages. Raises UserError naming file, row and field.
    """
    if table.num_rows == 0:
        raise UserError(f"{path}: has no rows: give a file with at least one prompt")
    _check_prompts(table["prompt"], fields.prompt, path, row_name)
    truths = _checked_truths(table["ground_truth"], fields.ground_truth, path, row_name)
    return table.set_column(table.column_names.index("ground_truth"), "ground_truth", truths)


def _joined(raw: pa.Table, others: Sequence[str], extra: pa.ChunkedArray | None) -> pa.ChunkedArray:
    """Return one struct of the columns `others` and the fields of `extra`, which win."""
    parts: dict[str, pa.ChunkedArray] = {name: raw[name] for name in others}
    if extra is not None and pa.types.is_struct(extra.type):
        parts |= {field.name: pc.struct_field(extra, field.name) for field in extra.type}
    return pc.make_struct(*parts.values(), field_names=list(parts))


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"the nearest is {close[0]!r}" if close else f"there are: {', '.join(names) or 'none'}"


def _column(table: pa.Table, field: str) -> pa.ChunkedArray:
    head, *inner = field.split(".")
    column = table[head]
    for part in inner:
        column = pc.struct_field(column, part)
    # pandas writes categories as dictionaries, and not every kernel takes views
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column


def _check_prompts(column: pa.ChunkedArray, field: str, path: str, row_name: Callable[[int], str]) -> None:
    if _is_text(column.type):
        _refuse(_blank(column), path, field, row_name, "is empty: give a prompt or remove the row")
        return
    if not _is_messages(column.type):
        raise UserError(
            f"{path}: {field} is {column.type}: it must be a string or a list of {{role: string, content: "
            f"string}}"
        )
    for start, chunk in _chunks(column):
        _check_messages(chunk, field, path, lambda row, start=start: row_name(start + row))


def _check_messages(chunk: pa.Array, field: str, path: str, row_name: Callable[[int], str]) -> None:
    parents = pc.list_parent_indices(chunk).to_numpy(zero_copy_only=False)
    messages = pc.list_flatten(chunk)
    role, content = pc.struct_field(messages, "role"), pc.struct_field(messages, "content")
    known = pc.fill_null(pc.is_in(role, pa.array(ROLES, role.type)), False).to_numpy(zero_copy_only=False)
    wordless = pc.is_null(content).to_numpy(zero_copy_only=False)
    _refuse_rows(
        parents[~known], path, f"{field}.role", row_name, f"is none of {', '.join(ROLES)}: correct it"
    )
    _refuse_rows(parents[wordless], path, f"{field}.content", row_name, "is missing: give a string")
    filled = np.zeros(len(chunk), dtype=bool)
    filled[parents[~_blank(content)]] = True
    _refuse(~filled, path, field, row_name, "is empty: give a prompt or remove the row")


def _checked_truths(
    column: pa.ChunkedArray, field: str, path: str, row_name: Callable[[int], str]
) -> pa.ChunkedArray:
    kind = column.type
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise UserError(
            f"{path}: {field} is {kind}: it must be a string or an integer, as the verifier shall compare it"
        )
    column = column.cast(pa.string())
    _refuse(
        _blank(column),
        path,
        field,
        row_name,
        "is missing: a verifier needs a ground truth, give one or remove the row",
    )
    return column


def _check_type(kind: pa.DataType, is_wanted: Callable[[pa.DataType], bool], where: str, wanted: str) -> None:
    if not (is_wanted(kind) or pa.types.is_null(kind)):
        raise UserError(f"{where} is {kind}: it must be {wanted}; convert or remove the column")


def _blank(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return which rows are null or only white space, [rows] bool."""
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
    return empty.to_numpy() if isinstance(empty, pa.ChunkedArray) else empty.to_numpy(zero_copy_only=False)


def _refuse(bad: np.ndarray, path: str, field: str, row_name: Callable[[int], str], what: str) -> None:
    _refuse_rows(np.flatnonzero(bad), path, field, row_name, what)


def _refuse_rows(rows: np.ndarray, path: str, field: str, row_name: Callable[[int], str], what: str) -> None:
    if rows.size:
        more = f" (and {rows.size - 1} more)" if rows.size > 1 else ""
        raise UserError(f"{path}: {row_name(int(rows[0]))}{more}: {field} {what}")


def _chunks(column: pa.ChunkedArray) -> Iterator[tuple[int, pa.Array]]:
    start = 0
    for chunk in column.chunks:
        yield start, chunk
        start += len(chunk)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_messages(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(
        kind.value_type
    ):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    return all(name in fields and _is_text(fields[name]) for name in ("role", "content"))
