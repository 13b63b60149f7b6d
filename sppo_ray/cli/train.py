"""`sppo-ray train`: run a recipe with overrides in a new run directory."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from sppo_ray.cli.shared import AllowModule, AllowUnconfined, Overrides, lost_worker, runs_directory
from sppo_ray.errors import DiskFull, UserError, is_disk_full

if TYPE_CHECKING:
    from sppo_ray.config import RunConfig
    from sppo_ray.planning.devices import Cluster


def train(
    recipe: Annotated[
        str | None,
        Argument(
            help="a recipe that ships (sppo-ray recipes), or a .yaml file; with --from the default is that "
            "run's"
        ),
    ] = None,
    *,
    continued: Annotated[
        Path | None,
        Option("--from", metavar="RUN", help="start a new run from the export of a finished one"),
    ] = None,
    run_dir: Annotated[Path | None, Option(help="run directory (default: runs/NAME-seedN-TIME)")] = None,
    seed: Annotated[int | None, Option(help="overrides the recipe's seed")] = None,
    resume: Annotated[
        bool, Option("--resume", help="continue the run in --run-dir from its newest whole checkpoint")
    ] = False,
    restarts: Annotated[
        int, Option(help="restart with --resume after a crash, at most N times in a row without progress")
    ] = 0,
    config_sha256: Annotated[
        str | None,
        Option(metavar="HEX", help="refuse a recipe file with other content (jobs of the REST server)"),
    ] = None,
    trace: Annotated[
        bool, Option("--trace", help="write trace.json for ui.perfetto.dev (= --logging.trace=true)")
    ] = False,
    verbose: Annotated[
        bool, Option("--verbose", help="print what libraries and actors print, too")
    ] = False,
    allow_module: AllowModule,
    allow_unconfined: AllowUnconfined,
    dry_run: Annotated[
        bool, Option("--dry-run", help="print settings and plan, and say whether the run can start here")
    ] = False,
    overrides: Overrides,
) -> int:
    """Train a recipe. Any of its settings can be overridden by its path and an equals sign, e.g.
    --loop.steps=20 --data.train.0.path=rows.jsonl; `sppo-ray settings` lists them.
    """
    from sppo_ray.cli.continuation import continuation
    from sppo_ray.config import permissions
    from sppo_ray.config.loading import load_config, recipe_names
    from sppo_ray.tracking import require_trackers

    overrides = [*overrides, *_short_forms(seed, trace=trace, verbose=verbose)]
    start = None
    if continued is not None:
        start = continuation(continued, recipe, overrides, sha256=config_sha256)
        recipe = start.recipe
    if recipe is None:
        raise UserError(f"name a recipe: a .yaml file, or one that ships ({', '.join(recipe_names())})")
    config = start.config if start else load_config(recipe, overrides, sha256=config_sha256)
    granted = permissions.Grants(tuple(allow_module), tuple(allow_unconfined))
    permissions.require_for_file(config, granted, permissions.settings_in(overrides), recipe)
    config = fitted_here(config)
    require_trackers(config.logging)
    if start is not None:
        print(f"# {start.note}" if dry_run else start.note, flush=True)
    if dry_run:
        print(_describe(config), flush=True)
        _require_startable(config, run_dir, resume)
        print("# prompts   are read, with the tokenizers of the models ...", flush=True)
        print(f"# prompts   {_require_prompts(config)}")
        print("# result    this run can start here")
        return 0
    if resume and run_dir is None:
        raise UserError("--resume needs the --run-dir of the run to continue")
    place = run_dir or runs_directory() / f"{config.name}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not restarts:
        return run_training(config, place, resume=resume, continues=start.record if start else None)

    from sppo_ray.launch.supervisor import Supervisor, train_command

    same = [f"--config-sha256={config_sha256}"] if config_sha256 else []
    source = [] if continued is None else [f"--from={continued}"]
    command = train_command([recipe, *source, *granted.flags, *same, *overrides], place)
    return Supervisor(command, place, restarts=restarts).run(resume=resume)


def _short_forms(seed: int | None, *, trace: bool, verbose: bool) -> list[str]:
    """Return the settings that these options are short for."""
    forms = {
        f"--seed={seed}": seed is not None,
        "--logging.trace=true": trace,
        "--cluster.actor_output=true": verbose,
    }
    return [setting for setting, is_given in forms.items() if is_given]


def fitted_here(config: RunConfig) -> RunConfig:
    """Return the settings with CPU shares that fit this machine, unless the run joins a cluster."""
    from sppo_ray.launch.cluster import starts_cluster
    from sppo_ray.planning.resources import fitted_cpus

    if not starts_cluster(config):
        return config
    return fitted_cpus(config, config.cluster.local_cpus or os.cpu_count() or 1)


def run_training(config: RunConfig, run_dir: Path, *, resume: bool, **hooks: Any) -> int:
    """Call `launch.train.train`, and turn the loss of a worker and a full disk into errors that say
    how to continue. `hooks`: its callbacks and signals.
    """
    from sppo_ray.launch.train import train

    try:
        with lost_worker(f"The run can be continued: add --resume --run-dir {run_dir}"):
            return train(config, run_dir, resume=resume, **hooks)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"no space left on the disk of {run_dir}: free some and add --resume --run-dir {run_dir}"
        ) from None


def _describe(config: RunConfig) -> str:
    from sppo_ray.config.loading import dump_config

    derived = config.derived()
    width = max(len(name) for name in derived)
    lines = (f"# {name:<{width}}  {value:g}" for name, value in derived.items())
    return "\n".join([dump_config(config), "# derived", *lines, "# plan", *_plan(config)])


def _require_startable(config: RunConfig, run_dir: Path | None, resume: bool) -> None:
    """Raise UserError for what would stop the run before its first step, as far as that is known
    without torch and Ray.
    """
    from sppo_ray.launch.run_inputs import try_rewards_at_once
    from sppo_ray.planning.changes import require_memory
    from sppo_ray.planning.models import models_of
    from sppo_ray.planning.preflight import check_settings
    from sppo_ray.planning.resources import require_feasible
    from sppo_ray.rundir.layout import RunDir

    if run_dir is not None:
        RunDir(run_dir).require_free(resume=resume)
    check_settings(config)
    try_rewards_at_once(config)
    cluster = _cluster_here(config)
    if cluster is None:
        return
    require_feasible(config, [node.resources for node in cluster.nodes])
    try:
        models = models_of(config)
    except UserError:  # of a kind that the planner does not count
        return
    require_memory(config, cluster, models)


def _require_prompts(config: RunConfig) -> str:
    """Raise UserError for prompts with which the run would not start: too long, or held out as
    well. Returns whether they were checked. Nothing is downloaded or made for it.
    """
    from sppo_ray.models.bundled import find_model
    from sppo_ray.models.exported_critic import critic_directory

    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return f"not checked: {missing[0]} is not installed"
    models = [config.learner.model]
    if config.has_critic:
        models.append(str(critic_directory(config.critic.model)))
    absent = [model for model in models if find_model(model) is None]
    if absent:
        return f"not checked: {absent[0]} is not on this machine yet; sppo-ray prepare fetches it"
    if any(source.type == "hf" for source in (*config.data.train, *config.data.held_out)):
        return "not checked: a data set of the hub may not be on this machine yet"
    from sppo_ray.launch.run_inputs import gather_inputs

    gather_inputs(config, lambda _: None)
    return "checked: none is too long, none of training is held out"


def _cluster_here(config: RunConfig) -> Cluster | None:
    """Return what the run would start on; None when that is not known: a cluster without Ray here,
    GPUs of an unknown kind.
    """
    from sppo_ray.cli.plan import live
    from sppo_ray.launch.cluster import require_reachable
    from sppo_ray.planning.devices import this_machine

    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        require_reachable(address)
        return live(config)
    found = this_machine(config.cluster.local_cpus)
    has_unknown = config.logical_gpus() > 0 and found.num_gpus == 0 and shutil.which("nvidia-smi")
    return None if has_unknown else found


def _plan(config: RunConfig) -> list[str]:
    """Return the plan as comments, or why there is none."""
    from sppo_ray.cli.plan import cluster_of
    from sppo_ray.planning.changes import advise
    from sppo_ray.planning.models import models_of
    from sppo_ray.planning.plan import make_plan
    from sppo_ray.planning.text import plan_text

    try:
        models = models_of(config)
        plan = make_plan(config, cluster_of(config), models)
    except UserError as error:
        return [f"# none: {error}"]
    advice = (f"advice    {line}" for line in advise(config, plan, models))
    return [f"# {line}".rstrip() for line in [*plan_text(plan).splitlines(), *advice]]
