"""Read a sorted page of a step's samples: the sort key of all rows, the texts of the page only."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.schemas import Sample, SamplePage, Turn
from sppo_ray.errors import UserError
from sppo_ray.rundir.turns import COLUMNS as TURNS
from sppo_ray.rundir.turns import turns_of

MOST_BYTES = 512 << 20  # bytes of a step in memory
MOST_PAGE_BYTES = 64 << 20
Sort = Literal["surprise", "reward", "length", "index"]
_COLUMNS = (
    "request_id", "prompt_id", "source", "prompt_text", "ground_truth", "response_text", "response_ids",
    "finish_reason",
    "reward", "reason", "value", "surprise", "advantage", "staleness", "policy_version", "worker", "seconds",
    *TURNS,
)  # fmt: skip


def sample_page(
    run_dir: Path, *, step: int | None, sort: Sort, descending: bool, limit: int, offset: int
) -> SamplePage:
    """Samples [offset, offset + limit) of `step` (None = the newest) in that order; samples without
    the key come last. Raises ApiProblem (404) when the step is not recorded or its file is
    unreadable.
    """
    # pyarrow loads slowly, and most requests need no samples.
    from sppo_ray.rundir.trajectories import read_served_step, served_steps

    recorded = served_steps(run_dir)
    if not recorded:
        raise ApiProblem(
            404, "no samples are recorded yet (logging.trajectories, one file a step)", kind="no-samples"
        )
    wanted = recorded[-1] if step is None else step
    if wanted not in set(recorded):
        raise ApiProblem(
            404,
            f"no samples of step {wanted}: recorded are {recorded[0]} to {recorded[-1]}",
            kind="no-samples",
        )
    try:
        keys = read_served_step(run_dir, wanted, [_key_column(sort)], most=MOST_BYTES)
        order = _order(keys, sort, descending)
        chosen = order[offset : offset + limit]
        table = _page(read_served_step(run_dir, wanted, _COLUMNS, most=MOST_BYTES), chosen)
    except (UserError, OSError) as error:
        raise ApiProblem(
            404,
            f"the samples of step {wanted} cannot be read: {error}".replace(str(run_dir), "."),
            kind="no-samples",
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


def _page(table: Any, rows: Any) -> Any:
    """Read these rows of the table. Raises UserError when they are too large for an answer."""
    page = table.take(rows)
    if page.nbytes > MOST_PAGE_BYTES:
        raise UserError(
            f"this page has more than {MOST_PAGE_BYTES >> 20} MiB: ask for fewer samples with limit"
        )
    return page


def _key_column(sort: Sort) -> str:
    return {"surprise": "surprise", "reward": "reward", "length": "response_ids", "index": "step"}[sort]


def _order(table: Any, sort: Sort, descending: bool) -> Any:
    """Return row numbers in the requested order; ties keep the order of the file."""
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
    turns = [Turn(**asdict(turn)) for turn in turns_of(row)]
    renamed = {
        "prompt": row.pop("prompt_text"),
        "response": row.pop("response_text"),
        "tokens": len(row.pop("response_ids")),
    }
    kept = {name: value for name, value in row.items() if name not in TURNS}
    return Sample(index=index, turns=turns, **renamed, **kept)
