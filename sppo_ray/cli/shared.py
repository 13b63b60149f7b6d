"""Shared parts of commands: options, argument parsing, the directory of runs, the error for a lost
worker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from sppo_ray.errors import UserError

SETTING = "--section.key"  # placeholder for settings in the list of options
TAKE_SEVERAL = ("--data", "--seen")  # --data A B is --data A --data B
_IS_VALUE = re.compile(r"[^-]|-?$|-\d+$|-\d*\.\d+$")  # not an option: a negative number


def repeated(*names: str, metavar: str, help: str) -> Any:
    """Define an option that may be repeated; empty by default."""
    return Option(*names, metavar=metavar, default_factory=list, show_default=False, help=help)


Overrides = Annotated[
    list[str], repeated(SETTING, metavar="=VALUE", help="e.g. --rollout.workers=2; see `sppo-ray settings`")
]
AllowModule = Annotated[
    list[str],
    repeated(
        metavar="NAME", help="module or installed package that untrusted settings may use as reward function"
    ),
]
AllowUnconfined = Annotated[
    list[str],
    repeated(metavar="NAME", help="of these, a module that may use network and files; HOST:PORT of a judge"),
]
JobId = Annotated[str, Argument(help="id of the job, see `sppo-ray list`")]
Url = Annotated[
    str | None,
    Option(
        help="the server (default: $SPPO_RAY_API, else http://127.0.0.1:8642); the token is "
        "$SPPO_RAY_API_TOKEN"
    ),
]
Json = Annotated[bool, Option("--json", help="print the server's answer")]


def is_setting(word: str) -> bool:
    """Whether `word` has the form --section.key=value; a flag may have it too."""
    return word.startswith("--") and "=" in word


class Command(TyperCommand):
    """A command that accepts any `--section.key=value` as an override, and several words after an
    option of TAKE_SEVERAL.

    A word that begins with a dash is never the value of an option.
    """

    allow_extra_args = True

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        options = {name: option for option in self.get_params(ctx) for name in option.opts}
        takes_settings = options.pop(SETTING, None) is not None
        words, strange = [], []
        open_option = ""  # the option that takes the next words
        for word in (word for word in args if word != "--"):
            name, equals, value = word.partition("=")
            if _IS_VALUE.match(word):
                is_further = open_option in TAKE_SEVERAL and words[-1] != open_option
                words += [open_option, word] if is_further else [word]
                continue
            if open_option and words[-1] == open_option:
                raise typer.BadParameter("a value is missing", param_hint=open_option)
            open_option = ""
            if name in options:
                words += [name, value] if equals and name[1] != "-" else [word]  # Typer reads -k=8 as "=8"
                open_option = "" if equals or options[name].is_flag else name
            elif word[:2] in options:  # -k8
                words.append(word)
            elif takes_settings and is_setting(word):
                words.append(f"{SETTING}={word}")
            else:
                strange.append(word)
        strange += super().parse_args(ctx, words)
        if strange and is_setting(strange[0]):
            raise UserError(f"{ctx.info_name} takes no settings: {strange[0]}")
        if strange:
            raise UserError(
                f"unexpected argument {strange[0]!r}: settings are written --section.key=value, e.g. "
                "--rollout.workers=2"
            )
        return []


def quiet_libraries() -> None:
    """Keep Transformers' progress bars and DeepSpeed's warnings out of this process's output."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    logging.getLogger("DeepSpeed").addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def runs_directory() -> Path:
    """Return the default directory of runs: $SPPO_RAY_RUNS, else ./runs. In a Ray job it is
    ~/sppo_ray_runs, because Ray clears the working directory.
    """
    in_ray_cache = "working_dir_files" in Path.cwd().parts
    default = Path.home() / "sppo_ray_runs" if in_ray_cache else "runs"
    return Path(os.environ.get("SPPO_RAY_RUNS") or default)


class WorkerLost(UserError):
    """A command cannot go on without a worker."""

    exit_code = 3


@contextlib.contextmanager
def lost_worker(then: str) -> Iterator[None]:
    """Turn a WorkerFailure into an error that names the worker and the remedy `then`."""
    from sppo_ray.protocols import WorkerFailure

    try:
        yield
    except WorkerFailure as failure:
        raise WorkerLost(f"lost {failure}. {then}") from None


def checked(model: Any, given: dict[str, Any]) -> Any:
    """Validate `given` with a pydantic model. Raises UserError for its first bad field."""
    from pydantic import ValidationError

    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']} (given: {first.get('input')!r})"
        ) from None
