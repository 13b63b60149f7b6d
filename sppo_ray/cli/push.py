"""`sppo-ray push`: upload the export of a run to the Hugging Face hub, with model cards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from sppo_ray.errors import UserError

if TYPE_CHECKING:
    from sppo_ray.rundir.layout import RunDir


def push(
    run: Annotated[Path, Argument(help="directory of a finished run")],
    repository: Annotated[str, Argument(metavar="REPO", help="org/name of the policy on the hub")],
    *,
    private: Annotated[
        bool, Option("--private", help="make a new repository private; one that exists stays as it is")
    ] = False,
    critic_repo: Annotated[
        str | None, Option(metavar="REPO", help="repository of the critic (default: REPO-critic)")
    ] = None,
    no_critic: Annotated[bool, Option("--no-critic", help="upload the policy only")] = False,
) -> int:
    """Upload the exported policy and critic to the hub, with model cards."""
    from sppo_ray.models.hub import parse_name, upload
    from sppo_ray.rundir.layout import RunDir

    run_dir = RunDir(run)
    if run_dir.finished_after is None or not run_dir.exported_policy.is_dir():
        raise UserError(
            f"run {run}: has no export of a finished run: finish it (sppo-ray train ... --resume --run-dir "
            f"{run}) with checkpoint.export on"
        )
    critic = critic_repo or f"{repository}-critic"
    for name in (repository, critic):
        found = parse_name(name)
        if found is None or found.revision is not None:
            raise UserError(f"{name}: a repository of the hub is written org/name")
    _write_cards(run_dir)
    print(f"policy: {upload(run_dir.exported_policy, repository, private=private, report=print)}")
    if run_dir.exported_critic.is_dir() and not no_critic:
        print(f"critic: {upload(run_dir.exported_critic, critic, private=private, report=print)}")
    return 0


def _write_cards(run_dir: RunDir) -> None:
    """Write the policy's card and curve beside it, and add the command, recipe and versions to the
    critic's card.
    """
    from sppo_ray.config.loading import load_config
    from sppo_ray.evaluation.critic_card import publish_card
    from sppo_ray.evaluation.policy_card import policy_card
    from sppo_ray.rundir.jsonlines import write_atomically

    config = load_config(str(run_dir.config))
    has_curve = run_dir.curve.is_file()
    if has_curve:
        shutil.copyfile(run_dir.curve, run_dir.exported_policy / run_dir.curve.name)
    card = policy_card(run_dir.path, config, has_curve=has_curve)
    write_atomically(run_dir.exported_policy / "README.md", card)
    if run_dir.exported_critic.is_dir():
        publish_card(run_dir.path, config)
