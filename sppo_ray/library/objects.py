"""What a call was given as objects, as settings and files of the run directory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sppo_ray.config import CustomReward
from sppo_ray.data.sources.table import fields_of, require_fields, rows_table
from sppo_ray.errors import UserError
from sppo_ray.rewards.custom import require_function
from sppo_ray.rewards.pickled import dump_function


def reward_setting(reward: str | dict[str, Any] | Callable[..., Any], file: Path) -> dict[str, Any]:
    """Return `reward.function`. A function that other processes can import is named by its import
    path; any other is pickled into `file`. A string is "module:function" or the type of a reward.
    Raises UserError.
    """
    if isinstance(reward, dict):
        return reward
    if isinstance(reward, str):
        return _custom(reward) if ":" in reward else {"type": reward}
    if not callable(reward):
        raise UserError(f"reward: is a {type(reward).__name__}: give a function, or the type of a reward")
    path = _import_path(reward)
    return dump_function(reward, file) if path is None else _custom(path)


def rows_setting(rows: Any, file: Path, origin: str) -> dict[str, Any]:
    """Return an entry of `data.train`. Rows are written into `file`; a string is a path. Raises
    UserError.
    """
    if isinstance(rows, (str, Path)):
        from sppo_ray.cli.eval_options import data_source

        return data_source(str(rows))
    if isinstance(rows, dict) and "type" in rows:
        return rows
    table = rows_table(rows, origin)
    fields = fields_of(table.column_names)
    require_fields(table.schema, fields, origin)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        pq.write_table(table, file)
    except (ValueError, NotImplementedError) as error:  # Arrow's own, e.g. for an empty struct
        raise UserError(f"{origin}: cannot be written as Parquet ({error}): remove that column") from None
    columns = {"ground_truth_key": fields.ground_truth, "extra_columns": list(fields.others)}
    return {"type": "parquet", "path": str(file), **columns}


def _import_path(function: Callable[..., Any]) -> str | None:
    """Return "module:function" where the verifier processes find the same function; else None."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    found = getattr(sys.modules.get(module or ""), name, None)
    if module in (None, "__main__") or found is not function:
        return None
    try:
        require_function(f"{module}:{name}", [module.partition(".")[0]])
    except UserError:  # e.g. of a module that was made by hand
        return None
    return f"{module}:{name}"


def _custom(path: str) -> dict[str, Any]:
    # Passing the function permits its package.
    packages = [path.partition(":")[0].partition(".")[0]]
    return CustomReward(function=path, packages=tuple(packages)).model_dump(mode="json")
