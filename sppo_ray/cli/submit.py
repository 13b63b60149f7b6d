"""`sppo-ray submit`: submit a training job to the REST API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from typer import Argument, Option

from sppo_ray.cli.jobs import print_log
from sppo_ray.cli.shared import Json, Overrides, Url, checked, repeated
from sppo_ray.errors import UserError


def submit(
    recipe: Annotated[str, Argument(help="a recipe that ships, or a .yaml file of this machine")],
    *,
    name: Annotated[
        str | None, Option(help="name of the run directory (default: recipe, seed and time)")
    ] = None,
    seed: Annotated[int | None, Option(help="overrides the recipe's seed")] = None,
    metadata: Annotated[list[str], repeated(metavar="KEY=VALUE", help="kept with the job")],
    working_dir: Annotated[str | None, Option(hidden=True)] = None,  # of `ray job submit`: refused
    follow: Annotated[bool, Option("--follow", help="print the log until the job ends")] = False,
    url: Url = None,
    as_json: Json = False,
    overrides: Overrides,
) -> int:
    """Submit a training job to a REST server. Settings are given as --section.key=value."""
    from sppo_ray.api.client import Client
    from sppo_ray.api.schemas import JobRequest

    if working_dir is not None:
        raise UserError(
            "--working-dir: a job of the REST server brings no code with it: install the reward function's "
            "module there (sppo-ray serve --allow-module NAME), or send the directory by Ray itself: ray job "
            f"submit --working-dir {working_dir} -- python -m sppo_ray train {recipe}"
        )
    given: dict[str, Any] = {
        "overrides": dict(_override(text) for text in overrides),
        "metadata": dict(map(_pair, metadata)),
    }
    given |= {"run_name": name} if name else {}
    given |= {"seed": seed} if seed is not None else {}
    is_file = recipe.endswith((".yaml", ".yml"))
    # a local recipe is sent as a whole, because the server cannot read the file
    given |= _checked_file(recipe, given["overrides"]) if is_file else {"recipe": recipe}
    with Client(url) as client:
        job = client.submit_job(checked(JobRequest, given))
        more = f"`sppo-ray status {job.id} --watch`, `sppo-ray logs {job.id} -f`"
        print(job.model_dump_json(indent=2) if as_json else f"submitted {job.id}: {more}")
        return print_log(client, job.id, tail=0, follow=True) if follow else 0


def _checked_file(recipe: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return config and overrides of the request for a recipe file, with absolute paths, checked as
    far as the files are on this machine. Raises UserError.
    """
    from sppo_ray.config.loading import parse_config, recipe_tree, set_setting
    from sppo_ray.config.paths import is_here, paths_of, with_absolute_paths
    from sppo_ray.planning.preflight import check_settings

    origin, tree = recipe_tree(recipe)
    for key, value in overrides.items():
        set_setting(tree, key, value)
    config = with_absolute_paths(parse_config(tree, origin), origin)
    if all(is_here(path) for _, path in paths_of(config)):
        check_settings(config, code=False)  # the function is the server's
    _, tree = recipe_tree(recipe)
    paths = dict(paths_of(config))
    for setting in paths.keys() - overrides.keys():
        set_setting(tree, setting, paths[setting])
    return {"config": tree, "overrides": {key: paths.get(key, value) for key, value in overrides.items()}}


def _override(text: str) -> tuple[str, Any]:
    from sppo_ray.config.outside_yaml import read_yaml

    key, _, value = text.removeprefix("--").partition("=")
    return key, read_yaml(value, f"--{key}")


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UserError(f"--metadata {text!r}: write it as KEY=VALUE")
    return key, value
