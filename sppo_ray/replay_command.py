"""`sppo-ray replay`: takes a recorded step again and says whether it comes out as it was written down.

records, newest checkpoint before the step --> learner and critic, no engine --> recorded against re-derived --> table, exit code
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo_ray.config import RunConfig
from sppo_ray.config_loading import load_config
from sppo_ray.errors import UserError

if TYPE_CHECKING:
    from sppo_ray.trainer.replay_records import Records, Start

EXIT_MATCHES, EXIT_DIFFERS = 0, 1


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """The command's arguments; `commands` is argparse's collection of subcommands."""
    parser = commands.add_parser(
        "replay",
        help="take a recorded step again and compare; exit 0 = it matches, 1 = it differs",
        allow_abbrev=False,
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="a run directory, of a run that goes on or has ended")
    parser.add_argument(
        "--step", type=int, required=True, metavar="K", help="the step to replay, counted from 1 as in metrics.jsonl"
    )
    parser.add_argument(
        "--exact", action="store_true", help="take nothing but equal bits for a match (log-probs of the engine aside)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Replay and print the report. Raises UserError for what cannot be replayed, and WorkerFailure."""
    run_dir = options.run_dir
    config = _config_of(run_dir, overrides)

    from sppo_ray.launch.replaying import rederive
    from sppo_ray.trainer.replay_records import Records, starting_point
    from sppo_ray.trainer.replay_report import make_report
    from sppo_ray.trainer.replay_table import headline, replay_table

    records = Records(run_dir)
    target = records.target(options.step)
    start = starting_point(run_dir / "checkpoints", target, _report)
    config = _as_long_as_then(config, records, start, target.step)
    steps = [records.step(step) for step in range(start.state.step + 1, target.step)]
    _report(f"replays step {target.step} from {start.name}")
    found = rederive(config, target, start, [*steps, target], _report)
    report = make_report(str(run_dir), config, target, start, records.weights, found)
    if options.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(f"{replay_table(report)}\n\n{headline(report)}")
    return EXIT_MATCHES if report.matches and (report.is_exact or not options.exact) else EXIT_DIFFERS


def _config_of(run_dir: Path, overrides: Sequence[str]) -> RunConfig:
    """The run's settings; overrides may say how and where, not what is computed."""
    from sppo_ray.trainer.checkpoint import resumable_settings

    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"run {run_dir}: no config.yaml in it, so it is no run directory: check the path")
    recorded, config = (resumable_settings(load_config(str(path), given)) for given in ((), overrides))
    different = sorted(name for name in recorded.keys() | config.keys() if recorded.get(name) != config.get(name))
    if different:
        raise UserError(
            f"{different[0]}: decides what is computed; a replay takes only settings of how and where, e.g. --cluster.address"
        )
    return load_config(str(path), overrides)


def _as_long_as_then(config: RunConfig, records: Records, start: Start, last: int) -> RunConfig:
    """The settings with the number of steps under which these steps were trained: a linear learning rate is stretched over it."""
    lengths = records.loop_steps(start.state.step + 1, last)
    schedules = {config.learner.optimizer.schedule} | ({config.critic.optimizer.schedule} if config.has_critic else set())
    if len(lengths) > 1 and "linear" in schedules:
        raise UserError(
            f"the run was resumed with another loop.steps between steps {start.state.step + 1} and {last} ({sorted(lengths)}), "
            "and its learning rate falls over all of them: replay a step before that, or one with a checkpoint after it"
        )
    return config.model_copy(update={"loop": config.loop.model_copy(update={"steps": max(lengths, default=config.loop.steps)})})


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
