"""`sppo-ray recipes`: list the shipped recipes, with their models and resources."""

from __future__ import annotations


def recipes() -> int:
    """List the recipes that ship."""
    from sppo_ray.config.loading import load_config, recipe_names
    from sppo_ray.formatting import format_count

    for name in recipe_names():
        config = load_config(name)
        cpus, gpus = format_count(config.logical_cpus(), "CPU"), format_count(config.logical_gpus(), "GPU")
        print(f"{name:24} {config.learner.model}  {cpus}  {gpus}")
    return 0
