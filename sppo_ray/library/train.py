"""`sppo_ray.train`: `sppo-ray train` as a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sppo_ray.algorithms.base import AlgorithmSpec
from sppo_ray.cli.shared import runs_directory
from sppo_ray.cli.train import fitted_here
from sppo_ray.config import permissions
from sppo_ray.config.loading import parse_config
from sppo_ray.launch.callbacks import Callback
from sppo_ray.library import objects
from sppo_ray.library.run import Run
from sppo_ray.library.settings import Recipe, apply, names_in, tree_of
from sppo_ray.library.start import start
from sppo_ray.rundir.layout import DATASET, HELD_OUT, REWARD, RunDir
from sppo_ray.tracking import require_trackers


def train(
    recipe: Recipe,
    *,
    run_dir: str | Path | None = None,
    algorithm: str | dict[str, Any] | AlgorithmSpec | None = None,
    reward: str | dict[str, Any] | Callable[..., Any] | None = None,
    dataset: Any = None,
    held_out: Any = None,
    callbacks: Sequence[Callback] = (),
    allow_module: Sequence[str] = (),
    allow_unconfined: Sequence[str] = (),
    **changes: Any,
) -> Run:
    """Train in this process and return the run when it has ended.

    Ctrl-C stops after the current step, with a checkpoint, and the run is returned as "stopped";
    `Run(dir).resume()` continues it.

    Args:
        recipe: A recipe that ships, a YAML file, a `RunConfig` or a dict of settings.
        run_dir: A new directory. None = runs/NAME-seedN-TIME.
        algorithm: The type of an algorithm, its section, or an `AlgorithmSpec`.
        reward: A function, "module:function", or the type of a reward. Its code runs in processes
            of its own. A function without an import path is pickled into the run directory.
        dataset: The training rows, instead of `data.train`: a list of dicts with `prompt` and
            `ground_truth`, an Arrow table, a Hugging Face dataset, a data frame (all written into
            the run directory), a path, or the settings of a source.
        held_out: The same for `data.held_out`. With `dataset` alone there is no held-out set.
        callbacks: Called in the driver after each step with its row of metrics. One that raises
            `StopTraining` ends the run; any other error ends it too, and is raised here.
        allow_module, allow_unconfined: As on the command line.
        changes: Sections and settings, see `load_config`. They come last.

    Raises:
        UserError: a mistake in settings, data or machine.
        WorkerFailure: a worker is permanently lost; the run can be resumed.
    """
    origin, tree = tree_of(recipe)
    typed = [*names_in(changes), *(["reward.function"] if reward is not None else [])]
    named = _default_name(tree, changes)
    place = Path(run_dir) if run_dir is not None else runs_directory() / named
    place = place.expanduser().resolve()
    RunDir(place).require_free(resume=False)  # before anything is written there
    if isinstance(algorithm, str):
        algorithm = {"type": algorithm}
    if algorithm is not None:
        apply(tree, {"algorithm": algorithm})
    if reward is not None:
        tree.setdefault("reward", {})["function"] = objects.reward_setting(reward, place / REWARD)
    if dataset is not None:
        tree.setdefault("data", {})["train"] = [objects.rows_setting(dataset, place / DATASET, "dataset")]
        tree["data"]["held_out"] = []
    if held_out is not None:
        source = objects.rows_setting(held_out, place / HELD_OUT, "held_out")
        tree.setdefault("data", {})["held_out"] = [source]
    apply(tree, changes)
    config = parse_config(tree, origin)
    require_trackers(config.logging)
    granted = permissions.Grants(tuple(allow_module), tuple(allow_unconfined))
    if isinstance(recipe, (str, Path)):
        permissions.require_for_file(config, granted, typed, str(recipe))
    start(fitted_here(config), place, resume=False, callbacks=callbacks)
    return Run(place)


def _default_name(tree: dict[str, Any], changes: dict[str, Any]) -> str:
    """Return the default name of the run directory."""
    name, seed = (changes.get(key, tree.get(key, default)) for key, default in (("name", "run"), ("seed", 1)))
    return f"{name}-seed{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
