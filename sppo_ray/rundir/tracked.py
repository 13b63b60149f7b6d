"""trackers.json: the ids of the run in its trackers, so that a resumed run continues there."""

from __future__ import annotations

from pathlib import Path

from sppo_ray.rundir.files import FileModel, RunFile
from sppo_ray.rundir.layout import TRACKED, RunDir


class TrackedAs(FileModel):
    """The run's ids, by the tracker's name."""

    ids: dict[str, str] = {}


def read_tracked(run_dir: Path) -> dict[str, str]:
    """Return the ids; empty when the file is missing or damaged."""
    return dict((TrackedAs.read(RunFile(run_dir, TRACKED)) or TrackedAs()).ids)


def remember_tracked(run_dir: RunDir, tracker: str, run_id: str) -> None:
    ids = read_tracked(run_dir.path) | {tracker: run_id}
    run_dir.write_json(TRACKED, TrackedAs(ids=ids).model_dump())
