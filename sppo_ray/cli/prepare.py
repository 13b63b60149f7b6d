"""`sppo-ray prepare`: makes the bundled models that a recipe needs."""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from sppo_ray.cli.shared import Overrides


def prepare(
    target: Annotated[str, Argument(help="a recipe or builtin:NAME")], *, overrides: Overrides
) -> int:
    """Make the bundled models of a recipe now."""
    from sppo_ray.config.loading import load_config
    from sppo_ray.models.bundled import PREFIX, resolve_model

    if target.startswith(PREFIX):
        models = [target]
    else:
        config = load_config(target, overrides)
        rewards = (model.model for model in config.reward.models)
        critic = [config.critic.model] if config.has_critic else []
        models = sorted({config.learner.model, *critic, *rewards})
    for model in models:
        print(f"{model}: {resolve_model(model)}")
    return 0
