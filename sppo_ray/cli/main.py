"""The command line: parse, call, print. Each command is a typed function in its own file, except
`jobs` (reading) and `steer` (acting). Heavy imports happen when it is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Annotated

import typer

from sppo_ray import __version__
from sppo_ray.cli.api_token import token
from sppo_ray.cli.calibrate import calibrate
from sppo_ray.cli.compare import compare
from sppo_ray.cli.delete import delete
from sppo_ray.cli.doctor import doctor
from sppo_ray.cli.eval_options import evaluate
from sppo_ray.cli.init import init
from sppo_ray.cli.jobs import list_jobs, logs, status
from sppo_ray.cli.plan import plan
from sppo_ray.cli.prepare import prepare
from sppo_ray.cli.prompt_map import map_prompts
from sppo_ray.cli.push import push
from sppo_ray.cli.recipes import recipes
from sppo_ray.cli.replay import replay
from sppo_ray.cli.report import report
from sppo_ray.cli.score import score
from sppo_ray.cli.serve import serve
from sppo_ray.cli.settings import settings
from sppo_ray.cli.shared import Command, is_setting
from sppo_ray.cli.steer import checkpoint, pause, resume, scale, stop
from sppo_ray.cli.submit import submit
from sppo_ray.cli.train import train
from sppo_ray.errors import UserError
from sppo_ray.redaction import redact

COMMANDS = {
    "init": init, "train": train, "plan": plan, "prepare": prepare,
    "compare": compare, "report": report, "push": push,
    "eval": evaluate, "calibrate": calibrate, "map": map_prompts, "replay": replay, "score": score,
    "serve": serve, "token": token, "submit": submit, "list": list_jobs, "status": status, "logs": logs,
    "scale": scale, "pause": pause, "resume": resume, "checkpoint": checkpoint, "stop": stop,
    "delete": delete, "recipes": recipes, "settings": settings, "doctor": doctor,
}  # fmt: skip

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,  # Rich would double the time that --help takes
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for _name, _command in COMMANDS.items():
    app.command(_name, cls=Command)(_command)


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
