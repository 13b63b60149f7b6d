"""The tracker of prompts in a checkpoint: tracker/tracker.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sppo_ray.algorithms.tracker import PromptTracker
from sppo_ray.config import RunConfig
from sppo_ray.file_digests import FileDigest, digest_folder
from sppo_ray.trainer.checkpoint import Writer

FOLDER = "tracker"
_FILE = "tracker.json"


def new_tracker(config: RunConfig, checkpoint: Path | None) -> PromptTracker | None:
    """Return the run's tracker with the state of a checkpoint (None = empty); None when the
    algorithm has no tracker.
    """
    settings = config.algorithm.tracked
    if settings is None:
        return None
    tracker = PromptTracker(settings.rho, has_critic=config.has_critic)
    if checkpoint is not None:
        tracker.restore(json.loads((checkpoint / FOLDER / _FILE).read_text(encoding="utf-8")))
    return tracker


def tracker_writer(tracker: PromptTracker) -> Writer:
    """Return the function that writes the tracker into a folder of a checkpoint."""

    async def write(directory: Path) -> Mapping[str, FileDigest]:
        (directory / _FILE).write_text(json.dumps(tracker.to_dict()), encoding="utf-8")
        return digest_folder(directory)

    return write
