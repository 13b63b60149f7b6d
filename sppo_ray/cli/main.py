"""The command line: parse, call, print. Each command is a typed function in its own file, except
`jobs` (reading) and `steer` (acting).

A command's file is imported when the command is called, and what it needs when it works, so that
--help is printed at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import takewhile
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sppo_ray import __version__
from sppo_ray.cli.shared import Command, is_setting, quiet_libraries
from sppo_ray.errors import UserError
from sppo_ray.redaction import redact

COMMANDS = {
    "init": ("init:init", "Write a project of your own: rows, reward.py and a recipe."),
    "train": ("train:train", "Train a recipe."),
    "plan": ("plan:plan", "Plan a recipe: memory, placement, time."),
    "prepare": ("prepare:prepare", "Make the bundled models of a recipe now."),
    "compare": ("compare:compare", "Run a recipe with several algorithms, or compare finished runs."),
    "report": ("report:report", "Write a run as one HTML file."),
    "push": ("push:push", "Upload the exported policy and critic to the hub, with model cards."),
    "eval": ("eval:evaluate", "Evaluate a checkpoint on files."),
    "calibrate": ("calibrate:calibrate", "Measure a critic against its policy's solve rates."),
    "map": ("prompt_map:map_prompts", "Write the value of every prompt of a data set as Parquet."),
    "replay": ("replay:replay", "Recompute a recorded step and compare it with the record."),
    "score": ("score:score", "Score responses with the verifier that training uses."),
    "serve": ("serve:serve", "Serve the REST API and its page for a directory of runs."),
    "token": ("api_token:token", "Make a token for the REST API and print it once."),
    "submit": ("submit:submit", "Submit a training job to a REST server."),
    "list": ("jobs:list_jobs", "List jobs, newest first."),
    "status": ("jobs:status", "Show the state of a job."),
    "logs": ("jobs:logs", "Show a job's log."),
    "scale": ("steer:scale", "Change the number of rollout workers of a running job."),
    "pause": ("steer:pause", "Pause a job after the current step."),
    "resume": ("steer:resume", "Resume a paused job."),
    "checkpoint": ("steer:checkpoint", "Write a checkpoint after the current step."),
    "stop": ("steer:stop", "End a job after the current step, with a checkpoint."),
    "delete": ("delete:delete", "Delete a job that has ended, with its run directory."),
    "recipes": ("recipes:recipes", "List the recipes that ship."),
    "settings": ("settings:settings", "Print every setting with its default and meaning."),
    "doctor": ("doctor:doctor", "Check this machine and installation."),
}
"""Name: module of sppo_ray.cli with the function, and the first sentence of its docstring."""


class Commands(Mapping[str, Command]):
    """The commands by name; looking one up imports its module."""

    def __getitem__(self, name: str) -> Command:
        module, _, function = COMMANDS[name][0].partition(":")
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(name, cls=Command)(getattr(import_module(f"sppo_ray.cli.{module}"), function))
        return typer.main.get_command(alone)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Program(TyperGroup):
    """The program with its commands; its --help imports none of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Commands()

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])


app = typer.Typer(
    cls=Program,
    add_completion=False,
    rich_markup_mode=None,  # Rich would double the time that --help takes
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"sppo-ray {__version__}")
        raise typer.Exit()


@app.callback()
def sppo_ray(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="print the version and exit")
    ] = False,
) -> None:
    """Sequence-Level PPO on Ray, vLLM and DeepSpeed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a UserError is one message on stderr, without a
    stack.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    first = list(takewhile(is_setting, words))  # settings may also come before the command
    words = words[len(first) :] + first
    if "--verbose" not in words:
        quiet_libraries()
    try:
        with typer.main.get_command(app).make_context("sppo-ray", words) as context:
            return context.command.invoke(context)
    except typer.Exit as done:  # of --help and --version
        return done.exit_code
    except UserError as error:
        message, code = str(error), error.exit_code
    except typer.TyperException as error:
        help_of = " ".join(["sppo-ray", *(word for word in words[:1] if word in COMMANDS), "--help"])
        message, code = f"{error.format_message().rstrip('.')} (see `{help_of}`)", error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has what it wanted: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        return 141
    print(f"error: {redact(message)}", file=sys.stderr)
    return code
