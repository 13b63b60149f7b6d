"""`sppo-ray train`: run a recipe with overrides in a new run directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sppo_ray.cli.shared import AllowModule, AllowUnconfined, Overrides, lost_worker, runs_directory
from sppo_ray.config import RunConfig, permissions
from sppo_ray.config.loading import dump_config, load_config, recipe_names
from sppo_ray.errors import DiskFull, UserError, is_disk_full


def train(
    recipe: Annotated[
        str, Argument(help=f"a recipe that ships ({', '.join(recipe_names())}) or a .yaml file")
    ],
    *,
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
    allow_module: AllowModule,
    allow_unconfined: AllowUnconfined,
    dry_run: Annotated[
        bool, Option("--dry-run", help="print the resolved settings and derived numbers, then stop")
    ] = False,
    overrides: Overrides,
) -> int:
    """Train a recipe; any setting can be overridden as --section.key=value."""
    if seed is not None:
        overrides = [*overrides, f"--seed={seed}"]
    if trace:
        overrides = [*overrides, "--logging.trace=true"]
    config = load_config(recipe, overrides, sha256=config_sha256)
    granted = permissions.Grants(tuple(allow_module), tuple(allow_unconfined))
    permissions.require_for_file(config, granted, permissions.settings_in(overrides), recipe)
    if dry_run:
        print(_describe(config))
        return 0
    if resume and run_dir is None:
        raise UserError("--resume needs the --run-dir of the run to continue")
    place = run_dir or runs_directory() / f"{config.name}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not restarts:
        return _train(config, place, resume)

    from sppo_ray.launch.supervisor import Supervisor, train_command

    same = [f"--config-sha256={config_sha256}"] if config_sha256 else []
    command = train_command([recipe, *granted.flags, *same, *overrides], place)
    return Supervisor(command, place, restarts=restarts).run(resume=resume)


def _train(config: RunConfig, run_dir: Path, resume: bool) -> int:
    from sppo_ray.launch.train import train

    try:
        with lost_worker(f"The run can be continued: add --resume --run-dir {run_dir}"):
            return train(config, run_dir, resume=resume)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"no space left on the disk of {run_dir}: free some and add --resume --run-dir {run_dir}"
        ) from None


def _describe(config: RunConfig) -> str:
    derived = config.derived()
    width = max(len(name) for name in derived)
    lines = (f"# {name:<{width}}  {value:g}" for name, value in derived.items())
    return "\n".join([dump_config(config), "# derived", *lines, "# plan", *_plan(config)])


def _plan(config: RunConfig) -> list[str]:
    """Return the plan as comments, or why there is none."""
    from sppo_ray.cli.plan import cluster_of
    from sppo_ray.planning.changes import advise
    from sppo_ray.planning.plan import make_plan, models_of
    from sppo_ray.planning.text import plan_text

    try:
        models = models_of(config)
        plan = make_plan(config, cluster_of(config), models)
    except UserError as error:
        return [f"# none: {error}"]
    advice = (f"advice    {line}" for line in advise(config, plan, models))
    return [f"# {line}".rstrip() for line in [*plan_text(plan).splitlines(), *advice]]
