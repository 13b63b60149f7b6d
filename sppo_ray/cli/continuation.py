"""`sppo-ray train --from RUN`: a new run that starts from the export of a finished one, with the
settings of that run or of a recipe, and overrides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sppo_ray.config import RunConfig, permissions
from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from sppo_ray.rundir.job import ContinuedRun, read_job
from sppo_ray.rundir.layout import RunDir


@dataclass(frozen=True, slots=True)
class Continuation:
    recipe: str
    config: RunConfig  # with the exported models
    record: ContinuedRun
    note: str  # what is continued, for the user


def continuation(
    run: Path, recipe: str | None, overrides: Sequence[str], *, sha256: str | None = None
) -> Continuation:
    """Return the settings of a run that continues `run`. Its critic is used where the algorithm has
    one and can read it; else the recipe's critic. Raises UserError when `run` has no export.
    """
    from sppo_ray.evaluation.policy_card import base_of

    old = RunDir(run.expanduser().resolve())
    if not old.config.is_file():
        raise UserError(f"--from {run}: no {old.config.name} in it, so it is not a run: check the path")
    if old.finished_after is None or not old.exported_policy.is_dir():
        raise UserError(
            f"--from {run}: has no export of a finished run: finish it (sppo-ray train ... --resume "
            f"--run-dir {run}) with checkpoint.export on"
        )
    typed = permissions.settings_in(overrides)
    if "learner.model" in typed:
        raise UserError("--from and --learner.model both name the starting policy: leave one out")
    before = load_config(str(old.config))
    recipe = recipe or str(old.config)
    given = [*overrides, _setting("learner.model", old.exported_policy)]
    config = load_config(recipe, given, sha256=sha256)
    reason = None
    if config.has_critic and "critic.model" not in typed:
        reason = _why_no_critic(old, before, config)
        if reason is None:
            given.append(_setting("critic.model", old.exported_critic))
            config = load_config(recipe, given, sha256=sha256)
    with_critic = config.critic.model == str(old.exported_critic)
    record = ContinuedRun(
        path=str(old.path),
        name=before.name,
        algorithm=before.algorithm.type,
        seed=before.seed,
        steps=old.finished_after,
        model=base_of(before, read_job(old.path)),
        critic=with_critic,
    )
    what = "policy and critic" if with_critic else "policy"
    note = f"starts from the {what} of {old.path}, step {old.finished_after}"
    return Continuation(recipe, config, record, note if reason is None else f"{note}; {reason}")


def _setting(name: str, path: Path) -> str:
    return f"--{name}={json.dumps(str(path))}"  # a JSON text is a YAML text


def _why_no_critic(old: RunDir, before: RunConfig, config: RunConfig) -> str | None:
    """Return why the new run cannot start from the exported critic; None if it can."""
    from sppo_ray.evaluation.critic_card import read_card

    critic = f"critic.model is {config.critic.model}, because that run's"
    directory = old.exported_critic
    if not directory.is_dir():
        return f"{critic} algorithm, {before.algorithm.type}, exports none"
    written = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    loss, wanted = written.get("critic_loss", "bce"), "bce" if config.critic_needs_probabilities else "mse"
    if loss != wanted:
        return f"{critic} critic was trained by {loss} and this run trains by {wanted}"
    if config.spec.critic == "token" and _vocabulary(directory) != _vocabulary(old.exported_policy):
        return f"{critic} critic has another vocabulary than its policy"
    card = read_card(directory)
    for name in ("system_prompt", "prompt_suffix"):
        if card is not None and card["settings"]["data"][name] != getattr(config.data, name):
            return f"{critic} critic learned with another data.{name}"
    return None


def _vocabulary(directory: Path) -> object:
    if not (directory / "tokenizer.json").is_file():
        return None
    tokenizer = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    return tokenizer.get("model", {}).get("vocab"), tokenizer.get("added_tokens")
