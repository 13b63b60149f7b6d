"""Held-out evaluations of a run, evaluations/step-000050.json: `EvalReport.to_dict` with the
training time and tokens until then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo_ray.errors import UserError
from sppo_ray.rundir.files import RunFile, json_object, names_in
from sppo_ray.rundir.layout import EVALUATIONS, RunDir, step_name, step_of

_ENDING = ".json"


def write_evaluation(run_dir: RunDir, step: int, content: Mapping[str, Any]) -> None:
    run_dir.write_json(f"{EVALUATIONS}/{step_name(step)}{_ENDING}", content)


def read_evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """Read all evaluations, by step. Raises UserError naming a file that is not JSON."""
    files = RunDir(run_dir).evaluations.glob("step-*")
    by_step = {step: file for file in files if (step := step_of(file.name, _ENDING)) is not None}
    return [_read(by_step[step]) for step in sorted(by_step)]


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}): remove or repair it") from None


def served_evaluations(run_dir: Path, *, most: int) -> list[dict[str, Any]]:
    """Read evaluations for a server, by step: the newest, at most `most` bytes in all, without
    following links.
    """
    names = [name for name in names_in(run_dir, EVALUATIONS) if step_of(name, _ENDING) is not None]
    found, left = [], most
    for name in reversed(names):
        file = RunFile(run_dir, f"{EVALUATIONS}/{name}")
        left -= max(file.stamp()[2], 0)
        if left >= 0 and (content := json_object(file, most)):
            found.append(content)
    return found[::-1]
