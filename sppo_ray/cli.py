"""The command line: parse, call, print. Heavy imports happen inside the command that needs them.

sppo-ray train RECIPE [--run-dir DIR] [--seed N] [--resume] [--restarts N] [--dry-run] [--section.key=value ...]
sppo-ray prepare RECIPE|builtin:NAME      make the bundled models that a recipe needs
sppo-ray compare RECIPE --arms A,B --seeds N --budget SECONDS [--section.key=value ...]   algorithms against each other
sppo-ray eval MODEL --data FILE...        avg@k, pass@k, maj@k of a checkpoint on evaluation files
sppo-ray calibrate RUN [--data FILE...]   the critic's values against its policy's solve rates, seen and held-out prompts
sppo-ray map CRITIC --data FILE... --out FILE.parquet   the critic's value of every prompt of a data set
sppo-ray replay RUN --step K [--json]     take a recorded step again, without engines, and say whether it matches
sppo-ray score FILE.jsonl                 verdicts of the training verifier, one JSON line each
sppo-ray serve | submit | list | status | logs | scale | pause | resume | checkpoint | stop   jobs over REST (`cli_jobs`)
sppo-ray recipes | doctor
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sppo_ray import __version__, calibrate_command, cli_jobs, eval_options, map_command, replay_command
from sppo_ray.config import RunConfig
from sppo_ray.config_loading import dump_config, load_config, recipe_names
from sppo_ray.errors import DiskFull, UserError, is_disk_full
from sppo_ray.redaction import redact

EXIT_WORKER_LOST = 3
TAKES_SETTINGS = ("train", "prepare", "compare", "eval", "calibrate", "map", "replay", "score", *cli_jobs.TAKES_SETTINGS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; an error a user can mend is one message on stderr, without a stack."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        overrides = _overrides(rest)
        if overrides and options.command not in TAKES_SETTINGS:
            raise UserError(f"{options.command} takes no settings: {rest[0]}")
        return int(options.run(options, overrides))
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sppo-ray", description="Sequence-Level PPO on Ray, vLLM and DeepSpeed.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"sppo-ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train", help="train a recipe; any setting can be overridden as --section.key=value", allow_abbrev=False
    )
    train.add_argument("recipe", help=f"a recipe that ships ({', '.join(recipe_names())}) or a .yaml file")
    train.add_argument("--run-dir", type=Path, help="where everything goes (default: runs/NAME-seedN-TIME)")
    train.add_argument("--seed", type=int, help="overrides the recipe's seed")
    train.add_argument("--resume", action="store_true", help="continue the run in --run-dir from its newest whole checkpoint")
    train.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help="start it again with --resume when its process crashes, N times in a row without getting further (default: 0)",
    )
    train.add_argument("--dry-run", action="store_true", help="print the resolved settings and what follows from them, then stop")
    train.set_defaults(run=_train)

    prepare = commands.add_parser("prepare", help="make the bundled models of a recipe now", allow_abbrev=False)
    prepare.add_argument("target", help="a recipe or builtin:NAME")
    prepare.set_defaults(run=_prepare)

    _add_compare(commands)

    evaluation = commands.add_parser(
        "eval", help="evaluate a checkpoint on files; settings as --section.key=value", allow_abbrev=False
    )
    eval_options.add_arguments(evaluation)
    evaluation.set_defaults(run=_eval)
    calibrate_command.add_parser(commands).set_defaults(run=_calibrate)
    map_command.add_parser(commands).set_defaults(run=map_command.run)
    replay_command.add_parser(commands).set_defaults(run=_replay)

    score = commands.add_parser("score", help="score responses with the verifier that training uses", allow_abbrev=False)
    score.add_argument("file", help='JSON lines {"response", "ground_truth"}')
    score.set_defaults(run=_score)

    cli_jobs.add_parsers(commands, _runs)

    commands.add_parser("recipes", help="list the recipes that ship", allow_abbrev=False).set_defaults(run=_recipes)
    commands.add_parser("settings", help="every setting with its default and meaning", allow_abbrev=False).set_defaults(
        run=_settings
    )
    commands.add_parser("doctor", help="check this machine and installation", allow_abbrev=False).set_defaults(run=_doctor)
    return parser


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compare = commands.add_parser(
        "compare", help="run a recipe under several algorithms with the same budget, and report", allow_abbrev=False
    )
    compare.add_argument("recipe", nargs="?", help="as for train; left out, the comparison in --out is continued as planned")
    compare.add_argument("--arms", help="built-in arms between commas (default: sppo,grpo,ppo,rloo,remax)")
    compare.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,...",
        help="an arm of your own; may start from a built-in one",
    )
    compare.add_argument("--seeds", type=int, metavar="N", help="seeds 1 to N of each arm")
    compare.add_argument("--budget", type=float, metavar="SECONDS", help="of training for each run, evaluations not counted")
    compare.add_argument(
        "--concurrent", type=int, default=1, metavar="K", help="runs at a time, each on its own share of the cores"
    )
    compare.add_argument("--targets", metavar="A,B", help="held-out accuracies to measure the way to (default: by a rule)")
    compare.add_argument("--baseline", metavar="ARM", help="arm that the others' speed is measured against (default: the first)")
    compare.add_argument("--out", type=Path, help="folder of the comparison (default: runs/compare-RECIPE-TIME)")
    compare.add_argument("--dry-run", action="store_true", help="print the arms and their settings, then stop")
    compare.add_argument("--report-only", action="store_true", help="write the report of what is finished in --out, run nothing")
    compare.set_defaults(run=_compare)


def _overrides(rest: Sequence[str]) -> list[str]:
    for argument in rest:
        if not argument.startswith("--") or "=" not in argument:
            raise UserError(
                f"unexpected argument {argument!r}: settings are written --section.key=value, e.g. --rollout.workers=2"
            )
    return list(rest)


def _train(options: argparse.Namespace, overrides: list[str]) -> int:
    if options.seed is not None:
        overrides = [*overrides, f"--seed={options.seed}"]
    config = load_config(options.recipe, overrides)
    if options.dry_run:
        print(_describe(config))
        return 0
    if options.resume and options.run_dir is None:
        raise UserError("--resume needs the --run-dir of the run to continue")
    run_dir = options.run_dir or _runs() / f"{config.name}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"

    if options.restarts:
        from sppo_ray.launch.supervisor import Supervisor, train_command

        command = train_command([options.recipe, *overrides], run_dir)
        return Supervisor(command, run_dir, restarts=options.restarts).run(resume=options.resume)

    from sppo_ray.launch.training import train

    then = f"The run can be continued: add --resume --run-dir {run_dir}"
    try:
        return _unless_lost(lambda: train(config, run_dir, resume=options.resume), then)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(f"no space left on the disk of {run_dir}: free some and add --resume --run-dir {run_dir}") from None


def _runs() -> Path:
    """Where runs go by default: $SPPO_RAY_RUNS, else ./runs. A Ray job's working directory is a cache that Ray clears."""
    in_ray_cache = "working_dir_files" in Path.cwd().parts
    return Path(os.environ.get("SPPO_RAY_RUNS") or (Path.home() / "sppo_ray_runs" if in_ray_cache else "runs"))


def _prepare(options: argparse.Namespace, overrides: list[str]) -> int:
    from sppo_ray.models.bundled import PREFIX, resolve_model

    if options.target.startswith(PREFIX):
        models = [options.target]
    else:
        config = load_config(options.target, overrides)
        models = sorted({config.learner.model, config.critic.model})
    for model in models:
        print(f"{model}: {resolve_model(model)}")
    return 0


def _compare(options: argparse.Namespace, overrides: list[str]) -> int:
    from sppo_ray.compare.command import run

    return run(options, overrides, _runs())


def _eval(options: argparse.Namespace, overrides: list[str]) -> int:
    config = eval_options.config_from_options(options, overrides)
    model = Path(options.model).name.removeprefix("builtin:")
    out = options.out or _runs() / f"eval-{model}-{time.strftime('%Y%m%d-%H%M%S')}"

    from sppo_ray.eval_command import run_evaluation

    return _unless_lost(lambda: run_evaluation(config, out), "Nothing was written: run the evaluation again")


def _calibrate(options: argparse.Namespace, overrides: list[str]) -> int:
    return _unless_lost(lambda: calibrate_command.run(options, overrides), "Nothing was written: run it again")


def _replay(options: argparse.Namespace, overrides: list[str]) -> int:
    return _unless_lost(lambda: replay_command.run(options, overrides), "The run is as it was: replay it again")


def _unless_lost(command: Callable[[], int], then: str) -> int:
    """The command's exit code, or EXIT_WORKER_LOST when it lost a worker: stderr names it and says what to do `then`."""
    from sppo_ray.trainer.interfaces import WorkerFailure

    try:
        return command()
    except WorkerFailure as failure:
        print(f"error: lost {failure}. {then}", file=sys.stderr)
        return EXIT_WORKER_LOST


def _score(options: argparse.Namespace, overrides: list[str]) -> int:
    from sppo_ray.config_loading import parse_reward_settings
    from sppo_ray.rewards.score_file import score_file

    errors = score_file(options.file, parse_reward_settings(overrides), sys.stdout)
    if errors:
        print(f"{errors} responses could not be scored (reward null)", file=sys.stderr)
    return 0


def _recipes(options: argparse.Namespace, overrides: list[str]) -> int:
    for name in recipe_names():
        config = load_config(name)
        print(f"{name:24} {config.learner.model}  {config.logical_cpus():g} CPUs  {config.logical_gpus():g} GPUs")
    return 0


def _settings(options: argparse.Namespace, overrides: list[str]) -> int:
    from sppo_ray.config_reference import reference

    print(reference(), end="")
    return 0


def _doctor(options: argparse.Namespace, overrides: list[str]) -> int:
    from sppo_ray.doctor import main as doctor

    return doctor()


def _describe(config: RunConfig) -> str:
    derived = config.derived()
    width = max(len(name) for name in derived)
    return dump_config(config) + "\n# derived\n" + "\n".join(f"# {name:<{width}}  {value:g}" for name, value in derived.items())
