"""Reads untrusted Parquet files in bounded memory: 12 kB of Parquet can unpack to a gigabyte.

Three limits apply, in this order:

1. The unpacked size of all columns, from the sizes and numbers of values in the metadata.
2. The number of rows in a batch, so that a batch of the largest possible values stays in the limit.
3. The size that has been unpacked so far.

The first two limits trust the metadata. The third one stops a file with false metadata after at
most one batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sppo_ray.errors import UserError

LARGEST_TABLE = 4 << 30  # bytes in memory
ALWAYS_ALLOWED = 64 << 20  # bytes in memory, for a file of any size
# limit of unpacked size / file size; text that repeats every prompt a hundred times stays below
LARGEST_GROWTH = 200
_SMALL_FILE = 1 << 20  # bytes
# bytes per value; text has an offset of 4 bytes per value
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}


def read_bounded(
    source: Path | str | BinaryIO, columns: Sequence[str] | None, *, most: int = LARGEST_TABLE
) -> pa.Table:
    """Read the file's `columns` (None = all) as a table of at most `most` bytes.

    Raises UserError, without the file's name, for a table that is larger or is too large for its
    file size, and ArrowException.
    """
    size = os.fstat(source.fileno()).st_size if hasattr(source, "fileno") else os.stat(source).st_size
    most = min(most, max(ALWAYS_ALLOWED, LARGEST_GROWTH * size))
    file = pq.ParquetFile(source)
    chunks = list(_chunks(file.metadata, columns))
    _require(sum(_unpacked(chunk) for chunk in chunks), most, size)
    largest = max((chunk.total_uncompressed_size for chunk in chunks), default=1)
    fewest = 1 if size <= _SMALL_FILE else 64
    rows = min(max(most // max(largest, 1) // 4, fewest), 8192)
    schema = file.schema_arrow if columns is None else _subset(file.schema_arrow, columns)
    batches, total = [], 0
    for batch in file.iter_batches(batch_size=rows, columns=None if columns is None else list(columns)):
        total += batch.nbytes
        _require(total, most, size)
        batches.append(batch.replace_schema_metadata(schema.metadata))
    table = pa.Table.from_batches(batches, schema=batches[0].schema if batches else schema)
    return table.combine_chunks() if len(batches) > 1 else table


def _chunks(metadata: Any, columns: Sequence[str] | None) -> Iterator[Any]:
    """Yield the metadata of each column chunk."""
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            if columns is None or column.path_in_schema.partition(".")[0] in columns:
                yield column


def _unpacked(chunk: Any) -> int:
    return max(chunk.total_uncompressed_size, chunk.num_values * _WIDTHS.get(chunk.physical_type, 4))


def _subset(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    return pa.schema(
        [schema.field(name) for name in columns if name in schema.names], metadata=schema.metadata
    )


def _require(size: int, most: int, file_size: int) -> None:
    if size > most:
        raise UserError(
            f"unpacks to more than {most / 2**20:.0f} MiB from {file_size / 2**20:.2f} MiB: split the file, "
            "or write it again "
            "without what repeats"
        )
