"""A page of a step's samples, sorted. Only the sort key is read of all rows; the texts only of the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.run_files import RunFile, names_in
from sppo_ray.api.schemas import Sample, SamplePage
from sppo_ray.errors import UserError

Sort = Literal["surprise", "reward", "length", "index"]
_COLUMNS = (
    "request_id", "prompt_id", "source", "prompt_text", "ground_truth", "response_text", "response_ids", "finish_reason",
    "reward", "reason", "value", "surprise", "advantage", "staleness", "policy_version", "worker", "seconds",
)  # fmt: skip


def sample_page(run_dir: Path, *, step: int | None, sort: Sort, descending: bool, limit: int, offset: int) -> SamplePage:
    """Samples [offset, offset + limit) of `step` (None = the newest) in that order; those without a figure come last.

    Raises ApiProblem (404) when the run recorded no such step, or its file cannot be read.
    """
    from sppo_ray.data.trajectory_log import FOLDER, steps_among

    recorded = steps_among(names_in(run_dir, FOLDER))
    if not recorded:
        raise ApiProblem(404, "no samples are recorded yet (logging.trajectories, one file a step)", kind="no-samples")
    wanted = recorded[-1] if step is None else step
    if wanted not in set(recorded):
        raise ApiProblem(404, f"no samples of step {wanted}: recorded are {recorded[0]} to {recorded[-1]}", kind="no-samples")
    try:
        order = _order(_read(run_dir, wanted, [_key_column(sort)]), sort, descending)
        chosen = order[offset : offset + limit]
        table = _read(run_dir, wanted, _COLUMNS).take(chosen)
    except (UserError, OSError) as error:
        raise ApiProblem(
            404, f"the samples of step {wanted} cannot be read: {error}".replace(str(run_dir), "."), kind="no-samples"
        ) from None
    more = offset + limit < len(order)
    return SamplePage(
        step=wanted,
        first_step=recorded[0],
        last_step=recorded[-1],
        total=len(order),
        items=[_sample(index, row) for index, row in zip(chosen.to_pylist(), table.to_pylist(), strict=True)],
        next_cursor=str(offset + limit) if more else None,
    )


def _read(run_dir: Path, step: int, columns: Sequence[str]) -> Any:
    from sppo_ray.data.trajectory_log import file_name, read_table

    name = file_name(step)
    with RunFile(run_dir, name).open() as file:
        return read_table(run_dir / name, file, columns)


def _key_column(sort: Sort) -> str:
    return {"surprise": "surprise", "reward": "reward", "length": "response_ids", "index": "step"}[sort]


def _order(table: Any, sort: Sort, descending: bool) -> Any:
    """Row numbers in the order asked for; ties stay in the order of the file."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table[_key_column(sort)]
    rows = pa.array(range(len(column)), type=pa.int64())
    if sort == "index":
        return rows[::-1] if descending else rows
    key = pc.list_value_length(column) if sort == "length" else column
    keys = pa.table({"key": key, "row": rows})
    by = [("key", "descending" if descending else "ascending"), ("row", "ascending")]
    return pc.sort_indices(keys, sort_keys=by)  # nulls come last by default


def _sample(index: int, row: dict[str, Any]) -> Sample:
    renamed = {"prompt": row.pop("prompt_text"), "response": row.pop("response_text"), "tokens": len(row.pop("response_ids"))}
    return Sample(index=index, **renamed, **row)
