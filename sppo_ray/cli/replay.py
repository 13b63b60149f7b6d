"""`sppo-ray replay`: recompute a recorded step and compare it with the record.

records, newest checkpoint before the step --> learner and critic, no engine
    --> recorded against re-derived --> table, exit code
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from sppo_ray.cli.shared import Overrides, lost_worker
from sppo_ray.errors import UserError

if TYPE_CHECKING:
    from sppo_ray.config import RunConfig
    from sppo_ray.replay.records import Records, Start

EXIT_MATCHES, EXIT_DIFFERS = 0, 1


@lost_worker("The run is as it was: replay it again")
def replay(
    run_dir: Annotated[
        Path, Argument(metavar="RUN", help="a run directory, of a run that goes on or has ended")
    ],
    *,
    step: Annotated[int, Option(help="the step to replay, counted from 1 as in metrics.jsonl")],
    exact: Annotated[
        bool, Option("--exact", help="accept only equal bits as a match (except log-probs of the engine)")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="print the report as JSON")] = False,
    overrides: Overrides,
) -> int:
    """Recompute a recorded step and compare it with the record. Exit code 0: it matches, 1: it
    differs.
    """
    config = _config_of(run_dir, overrides)

    from sppo_ray.launch.run_inputs import pin_models
    from sppo_ray.replay.records import Records, starting_point
    from sppo_ray.replay.report import make_report
    from sppo_ray.replay.table import headline, replay_table
    from sppo_ray.replay.workers import rederive
    from sppo_ray.rundir.job import read_job
    from sppo_ray.rundir.layout import RunDir

    records = Records(run_dir)
    target = records.target(step)
    start = starting_point(RunDir(run_dir).checkpoints, target, _report)
    config = _as_long_as_then(config, records, start, target.step)
    steps = [records.step(earlier) for earlier in range(start.state.step + 1, target.step)]
    _report(f"replays step {target.step} from {start.name}")
    pinned = pin_models(config, read_job(run_dir).models)
    found = rederive(pinned, target, start, [*steps, target], _report)
    report = make_report(str(run_dir), config, target, start, records.weights, found)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(f"{replay_table(report)}\n\n{headline(report)}")
    return EXIT_MATCHES if report.matches and (report.is_exact or not exact) else EXIT_DIFFERS


def _config_of(run_dir: Path, overrides: Sequence[str]) -> RunConfig:
    """Return the run's settings; overrides may change how and where it runs, but not the result."""
    from sppo_ray.config.loading import load_config
    from sppo_ray.rundir.layout import RunDir
    from sppo_ray.trainer.checkpoint import resumable_settings

    path = RunDir(run_dir).config
    if not path.is_file():
        raise UserError(f"run {run_dir}: no {path.name} in it, so it is not a run directory: check the path")
    recorded, config = (resumable_settings(load_config(str(path), given)) for given in ((), overrides))
    different = sorted(
        name for name in recorded.keys() | config.keys() if recorded.get(name) != config.get(name)
    )
    if different:
        raise UserError(
            f"{different[0]}: decides what is computed; a replay takes only settings of how and where, e.g. "
            "--cluster.address"
        )
    return load_config(str(path), overrides)


def _as_long_as_then(config: RunConfig, records: Records, start: Start, last: int) -> RunConfig:
    """Set the number of steps that the run had when these steps were trained, because it scales a
    linear learning rate.
    """
    lengths = records.loop_steps(start.state.step + 1, last)
    schedules = {config.learner.optimizer.schedule} | (
        {config.critic.optimizer.schedule} if config.has_critic else set()
    )
    if len(lengths) > 1 and "linear" in schedules:
        raise UserError(
            f"the run was resumed with another loop.steps between steps {start.state.step + 1} and {last} "
            f"({sorted(lengths)}), "
            "and its learning rate falls over all of them: replay a step before that, or one with a "
            "checkpoint after it"
        )
    return config.model_copy(
        update={"loop": config.loop.model_copy(update={"steps": max(lengths, default=config.loop.steps)})}
    )


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
