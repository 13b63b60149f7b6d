"""Opens sources on disk: Parquet, JSON lines, and Hugging Face datasets."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sppo_ray.config import HFData, HFDiskData, JsonlData, ParquetData
from sppo_ray.data.parquet_limits import read_bounded
from sppo_ray.data.sources.base import Concatenation
from sppo_ray.data.sources.jsonl import check_first_row, read_jsonl
from sppo_ray.data.sources.table import Fields, TableSource, checked_table, require_fields
from sppo_ray.errors import UserError

SMALL_FILE = 4 << 20  # bytes that are read and checked in a fraction of a second


def open_parquet(settings: ParquetData, name: str, where: str) -> Concatenation:
    """Open Parquet files. Reads the columns of prompt and ground truth, the extra columns, and
    data_source and extra_info if present.
    """
    fields = _fields(settings)
    return _open_files(
        _matching_files(settings.path, ".parquet", where),
        partial(_read_parquet, fields=fields),
        name,
        settings.name,
    )


def open_jsonl(settings: JsonlData, name: str, where: str) -> Concatenation:
    """Open files of JSON lines: {prompt_key: string | messages, ground_truth_key: string | integer,
    "data_source"?, "extra_info"?}.
    """
    fields = Fields(prompt=settings.prompt_key, ground_truth=settings.ground_truth_key)
    return _open_files(
        _matching_files(settings.path, ".jsonl", where),
        partial(read_jsonl, fields=fields),
        name,
        settings.name,
    )


def peek_parquet(settings: ParquetData, where: str) -> None:
    """Check that the files are there and have the columns; small ones are read."""
    fields = _fields(settings)
    for path in _matching_files(settings.path, ".parquet", where):
        if Path(path).stat().st_size <= SMALL_FILE:
            _read_parquet(path, fields)
        else:
            _require_columns(path, fields)


def peek_jsonl(settings: JsonlData, where: str) -> None:
    """Check that the files are there, and the first row of each; small ones are read."""
    fields = Fields(prompt=settings.prompt_key, ground_truth=settings.ground_truth_key)
    for path in _matching_files(settings.path, ".jsonl", where):
        if Path(path).stat().st_size <= SMALL_FILE:
            read_jsonl(path, fields)
        else:
            check_first_row(path, fields)


def bytes_of(settings: ParquetData | JsonlData, where: str) -> int:
    """Return the size of the source's files."""
    suffix = f".{settings.type}"
    return sum(Path(path).stat().st_size for path in _matching_files(settings.path, suffix, where))


def peek_hf_disk(settings: HFDiskData, where: str) -> None:
    """Check that the directory is there."""
    _require_directory(str(Path(settings.path).expanduser()), where)


def open_hf_disk(settings: HFDiskData, name: str, where: str) -> TableSource:
    """Open a `Dataset`, or one split of a `DatasetDict`, that `save_to_disk` wrote."""
    path = str(Path(settings.path).expanduser())
    return _table_of(_load_hf(path, settings.split, where), settings, name, path)


def open_hf(settings: HFData, name: str, where: str) -> TableSource:
    """Open a dataset of the hub, from the cache where it is there."""
    if Path(settings.dataset).exists():  # load_dataset would read it instead
        raise UserError(
            f"{where}.dataset: {settings.dataset}: is a path here: use type parquet, jsonl or hf-disk, or "
            "start elsewhere"
        )
    datasets = _import_datasets(where)
    try:
        loaded = datasets.load_dataset(
            settings.dataset, settings.subset, split=settings.split, revision=settings.revision
        )
    except Exception as error:  # boundary: datasets, hub and network raise errors of many kinds
        raise UserError(
            f"{where}.dataset: {settings.dataset} cannot be loaded ({type(error).__name__}: {error}): check "
            "the name, subset, split or revision; a private one needs HF_TOKEN in the environment"
        ) from None
    return _table_of(loaded, settings, name, settings.dataset)


def _fields(settings: ParquetData | HFDiskData | HFData) -> Fields:
    prompt, truth = settings.prompt_key, settings.ground_truth_key
    return Fields(prompt=prompt, ground_truth=truth, others=settings.extra_columns or ())


def _table_of(dataset: Any, settings: HFDiskData | HFData, name: str, path: str) -> TableSource:
    fields = _fields(settings)
    require_fields(dataset.features.arrow_schema, fields, path)
    if dataset.num_rows == 0:
        raise UserError(f"{path}: has no rows: give a dataset with at least one prompt")
    dataset = dataset.select_columns(fields.columns_in(dataset.column_names))
    table = dataset.with_format("arrow")[:]
    return TableSource(checked_table(table, fields, path), name, label=settings.name)


def _open_files(
    files: list[str], read: Callable[[str], pa.Table], name: str, label: str | None
) -> Concatenation:
    parts: list[TableSource] = []
    rows = 0
    for file in files:
        parts.append(TableSource(read(file), name, label=label, first_row=rows))
        rows += len(parts[-1])
    return Concatenation(name, parts)


def _matching_files(path: str, suffix: str, where: str) -> list[str]:
    """Return the files of a path, a directory or a glob, sorted by name."""
    given = Path(path).expanduser()
    if given.is_file():
        found = [str(given)]
    elif given.is_dir():
        found = sorted(str(file) for file in given.glob(f"*{suffix}") if file.is_file())
        if not found:
            raise UserError(
                f"{where}.path: {path}: the directory has no *{suffix} file: give the directory that holds "
                "them"
            )
    elif glob.has_magic(path):
        found = sorted(file for file in glob.glob(str(given), recursive=True) if Path(file).is_file())
        if not found:
            raise UserError(
                f"{where}.path: {path}: no file matches (looked from {Path.cwd()}): correct the pattern"
            )
    else:
        raise UserError(
            f"{where}.path: {path}: no such file or directory (looked from {Path.cwd()}): correct the path"
        )
    for file in found:
        if Path(file).stat().st_size == 0:
            raise UserError(f"{file}: is empty: give a file with at least one prompt")
    return found


def _read_parquet(path: str, fields: Fields) -> pa.Table:
    with _explained(path):
        table = _read_columns(path, fields.columns_in(_require_columns(path, fields).names))
    return checked_table(table, fields, path)


def _require_columns(path: str, fields: Fields) -> pa.Schema:
    with _explained(path):
        schema = pq.read_schema(path)
    require_fields(schema, fields, path)
    return schema


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as Parquet ({error}): convert it, or use type jsonl or hf-disk"
        ) from None


def _read_columns(path: str, columns: list[str]) -> pa.Table:
    try:
        return read_bounded(path, columns)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _require_directory(path: str, where: str) -> None:
    if not Path(path).is_dir():
        raise UserError(
            f"{where}.path: {path}: no such directory (looked from {Path.cwd()}): correct the path"
        )


def _import_datasets(where: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{where}: the package datasets is not installed: pip install datasets") from None
    return datasets


def _load_hf(path: str, split: str | None, where: str) -> Any:
    """Load a `datasets.Dataset`."""
    _require_directory(path, where)
    datasets = _import_datasets(where)
    try:
        loaded = datasets.load_from_disk(path)
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: is not a dataset written by save_to_disk ({error}): write one, or use type parquet"
        ) from None
    if isinstance(loaded, datasets.Dataset):
        if split is not None:
            raise UserError(f"{where}.split: {path} has no splits: remove the setting")
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        raise UserError(
            f"{where}.split: {path} has the splits {', '.join(loaded)}: name one of them (given: {split})"
        )
    return loaded[split]
