"""Experiment trackers: they receive a run's metrics in addition to metrics.jsonl.

TensorBoard is written directly. W&B, MLflow and those of other packages go through Accelerate's
tracking layer: a tracker of another package is an `accelerate.tracking.GeneralTracker` that is
registered as an entry point of the group `sppo_ray.trackers`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from sppo_ray.config import LoggingSettings, RunConfig
from sppo_ray.errors import UserError
from sppo_ray.rundir.layout import RunDir
from sppo_ray.tracking.base import Tracker
from sppo_ray.tracking.tensorboard import TensorBoard

GROUP = "sppo_ray.trackers"
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny sqlalchemy alembic"),
}
"""The module of a tracker, and what pip has to install."""


def require_trackers(settings: LoggingSettings) -> None:
    """Check that the trackers of `logging.trackers` are installed, without importing one. Raises
    UserError with the remedy.
    """
    registered = _registered()
    for name in settings.trackers:
        if name in registered:
            continue
        if name not in PACKAGES:
            raise UserError(_unknown(name, [*PACKAGES, *registered]))
        module, packages = PACKAGES[name]
        for needed, wanted in ((module, packages), ("accelerate", "accelerate")):
            if not _is_installed(needed):
                raise UserError(
                    f"logging.trackers: {name} needs {needed}, which is not installed: pip install {wanted}"
                )


def open_trackers(config: RunConfig, run_dir: RunDir, report: Callable[[str], None]) -> list[Tracker]:
    """Open the trackers that `logging` turns on. `report` gets a line when one of them fails later.
    Raises UserError when a package is missing, or when a tracker does not start for a new run.
    """
    settings = config.logging
    require_trackers(settings)
    names = list(dict.fromkeys(settings.trackers))
    trackers: list[Tracker] = []
    if settings.tensorboard or "tensorboard" in names:
        trackers.append(TensorBoard(run_dir.tensorboard))
    others = [name for name in names if name != "tensorboard"]
    if others:
        from sppo_ray.tracking.accelerated import AccelerateTracker  # imports torch

        registered = _registered()
        trackers += [
            AccelerateTracker(name, registered.get(name), config, run_dir, report) for name in others
        ]
    return trackers


def _registered() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _is_installed(module: str) -> bool:
    # W&B and MLflow write into folders of their names, which Python takes for namespace packages.
    found = find_spec(module)
    return found is not None and found.origin is not None


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return (
        f"logging.trackers: there is no tracker {name!r}{hint}; known: {', '.join(known)}, and others are "
        f"entry points of the group {GROUP} (docs/tools.md)"
    )
