"""`sppo-ray recipes`: list the shipped recipes, with their models and resources."""

from __future__ import annotations


def recipes() -> int:
    """List the recipes that ship."""
    from sppo_ray.config.loading import load_config, recipe_names

    for name in recipe_names():
        config = load_config(name)
        resources = f"{config.logical_cpus():g} CPUs  {config.logical_gpus():g} GPUs"
        print(f"{name:24} {config.learner.model}  {resources}")
    return 0
