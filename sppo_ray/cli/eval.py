"""`sppo-ray eval`: its arguments. `eval_options` makes them settings, `evaluate` does the work.

    --data FILE|DIRECTORY|GLOB            Parquet in verl's format, JSON lines, or a Hugging
                                          Face dataset, by its suffix
    --data running-sum:size=256,seed=7    a source of the settings with its fields; procedural ones
                                          have 256 prompts by default
    --reward math | running-sum | reasoning-gym | last-number | PACKAGE.MODULE:FUNCTION
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from sppo_ray.cli.shared import AllowModule, AllowUnconfined, Overrides, lost_worker, repeated, runs_directory
from sppo_ray.errors import UserError


@lost_worker("Nothing was written: run the evaluation again")
def evaluate(
    model: Annotated[
        str, Argument(help="a Transformers checkpoint, builtin:NAME, or a run directory (its export/policy)")
    ],
    *,
    data: Annotated[
        list[str],
        repeated(metavar="FILE...", help="files, directories, globs, or running-sum:size=256,seed=7"),
    ],
    recipe: Annotated[
        str | None, Option(help="take held-out data, reward and rollout settings from a recipe")
    ] = None,
    samples_per_prompt: Annotated[
        int | None,
        Option("-k", "--samples-per-prompt", help="responses a prompt (default: 1, or as a file repeats it)"),
    ] = None,
    pass_k: Annotated[
        str | None,
        Option(help="the k of pass@k, e.g. 1,4,8 (default: 1, 2, 4, ... and the samples a prompt)"),
    ] = None,
    temperature: Annotated[float | None, Option(help="default 1.0, or the recipe's; 0 = greedy")] = None,
    max_response_tokens: Annotated[
        int | None, Option(help="default 2048, or the recipe's, or what the context leaves")
    ] = None,
    limit: Annotated[int | None, Option(help="use only the first N prompts of each source")] = None,
    seed: Annotated[int | None, Option(help="default 1, or the recipe's")] = None,
    reward: Annotated[
        str | None,
        Option(help="math, running-sum, ..., last-number or package.module:function (default: by the data)"),
    ] = None,
    workers: Annotated[int | None, Option(help="rollout engines (default 1)")] = None,
    allow_module: AllowModule,
    allow_unconfined: AllowUnconfined,
    out: Annotated[
        Path | None, Option(help="new directory for report and responses (default: runs/eval-MODEL-TIME)")
    ] = None,
    overrides: Overrides,
) -> int:
    """Evaluate a checkpoint on files. Settings are given as --section.key=value."""
    from sppo_ray.cli.eval_options import typed_settings, typed_tree
    from sppo_ray.config import permissions
    from sppo_ray.config.evaluation import EvaluationConfig
    from sppo_ray.config.loading import parse_settings

    tree = typed_tree(model, recipe, data, reward)
    tree |= _given(seed=seed)
    tree["eval"] |= _given(samples_per_prompt=samples_per_prompt, prompts=limit, temperature=temperature)
    tree["eval"] |= _given(pass_k=None if pass_k is None else _integers(pass_k))
    tree["rollout"] |= _given(max_response_tokens=max_response_tokens, workers=workers)
    config = parse_settings(EvaluationConfig, tree, overrides, "eval settings")
    granted = permissions.Grants(tuple(allow_module), tuple(allow_unconfined))
    typed = typed_settings(reward, overrides)
    if recipe is not None:
        permissions.require_for_file(config, granted, typed, recipe)
    elif not data:
        permissions.require_all(config, granted, typed, f"run {model}")
    name = Path(model).name.removeprefix("builtin:")
    place = out or runs_directory() / f"eval-{name}-{time.strftime('%Y%m%d-%H%M%S')}"

    from sppo_ray.cli.evaluate import run_evaluation

    return run_evaluation(config, place)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _integers(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(
            f"--pass-k {text}: write whole numbers with commas between them, e.g. --pass-k 1,4,8"
        ) from None
