"""`sppo-ray plan`: bytes, placement and seconds of a run, without starting anything."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from sppo_ray.cli.shared import Overrides, repeated
from sppo_ray.errors import UserError

if TYPE_CHECKING:
    from sppo_ray.config import RunConfig
    from sppo_ray.planning.devices import Cluster


def plan(
    recipe: Annotated[str, Argument(help="a recipe that ships (sppo-ray recipes), or a .yaml file")],
    *,
    gpus: Annotated[
        str | None,
        Option(
            metavar="NxNAME",
            help="plan for these GPUs, e.g. 8xH100 (default: the cluster at RAY_ADDRESS, else this machine)",
        ),
    ] = None,
    cpus: Annotated[float | None, Option(help="CPUs of a node of --gpus (default: 16 a GPU)")] = None,
    host_memory: Annotated[
        float | None, Option(metavar="GIB", help="memory of a node of --gpus (default: 128 a GPU)")
    ] = None,
    model_config: Annotated[
        Path | None, Option(metavar="PATH", help="config.json of a policy that is not on this machine")
    ] = None,
    critic_config: Annotated[
        Path | None, Option(metavar="PATH", help="config.json of a critic that is not on this machine")
    ] = None,
    steps_done: Annotated[int, Option(help="steps that are done; the hours are those of the rest")] = 0,
    assume: Annotated[
        list[str],
        repeated(metavar="NAME=VALUE", help="what the seconds are computed from, e.g. response_share=.3"),
    ],
    as_json: Annotated[bool, Option("--json", help="print bytes and seconds as JSON")] = False,
    overrides: Overrides,
) -> int:
    """Plan a recipe: memory, placement, time. Exit code 1 when it does not fit."""
    from sppo_ray.config.loading import load_config
    from sppo_ray.planning.changes import advise
    from sppo_ray.planning.models import models_of
    from sppo_ray.planning.plan import make_plan
    from sppo_ray.planning.shapes import read_shape
    from sppo_ray.planning.text import plan_json, plan_text
    from sppo_ray.planning.time import assume as read_assumptions

    config = load_config(recipe, overrides)
    shapes = [path and read_shape(path) for path in (model_config, critic_config)]
    models, assumed = models_of(config, *shapes), read_assumptions(assume)
    cluster = cluster_of(config, gpus, cpus, host_memory)
    made = make_plan(config, cluster, models, assumed, remaining=max(0, config.loop.steps - steps_done))
    advice = advise(config, made, models, assumed)
    if as_json:
        print(json.dumps(plan_json(made) | {"advice": advice}, indent=1))
    else:
        print("\n".join([plan_text(made), *(f"advice    {line}" for line in advice)]))
    return 0 if made.fits else 1


def cluster_of(
    config: RunConfig, gpus: str | None = None, cpus: float | None = None, host_gib: float | None = None
) -> Cluster:
    """Return the described cluster, or the Ray cluster that the run would join, or this machine.
    Raises UserError.
    """
    from sppo_ray.planning.devices import parse_gpus, this_machine

    if gpus is not None:
        return parse_gpus(gpus, cpus=cpus, host_gib=host_gib)
    if cpus is not None or host_gib is not None:
        raise UserError("--cpus and --host-memory describe the nodes of --gpus: give it too")
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    found = (live(config) if address else None) or this_machine(config.cluster.local_cpus)
    if config.device == "cuda" and found.num_gpus == 0:
        raise UserError(
            f"{config.name} needs GPUs, and none of a known kind was found: name those to plan for, e.g. "
            f"sppo-ray plan RECIPE --gpus={max(1, round(config.logical_gpus()))}xH100"
        )
    return found


def live(config: RunConfig) -> Cluster | None:
    """Return the Ray cluster; None when it cannot be reached, or its GPUs are not known."""
    try:
        from sppo_ray.launch.cluster import ray_session
        from sppo_ray.planning.devices import ray_cluster

        with ray_session(config) as nodes:
            return ray_cluster(nodes)
    except (UserError, ImportError):
        return None
