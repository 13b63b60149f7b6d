"""`sppo-ray map`: the solvability map, every prompt of a data set with its value, by forwards of an exported critic."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sppo_ray.config import DataSettings
from sppo_ray.config_loading import parse_settings
from sppo_ray.errors import UserError
from sppo_ray.eval_options import data_source
from sppo_ray.settings import Settings


class MapSettings(Settings):
    """What a map can be told as --section.key=value."""

    data: DataSettings
    device: Literal["cpu", "cuda"] = "cpu"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """The command's arguments; `commands` is argparse's collection of subcommands."""
    parser = commands.add_parser("map", help="the value of every prompt of a data set, as Parquet", allow_abbrev=False)
    parser.add_argument("critic", type=Path, help="an exported critic, or a run directory for its export/critic")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="prompts: Parquet, JSON lines, ...")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet", help="where the map goes")
    return parser


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Write the map and print its histogram. Raises UserError."""
    if options.out.suffix != ".parquet" or options.out.is_dir():
        raise UserError(f"--out {options.out}: a map is a Parquet file, name it something.parquet")

    from rich.console import Console
    from rich.progress import Progress

    from sppo_ray.data.encoder import PromptEncoder
    from sppo_ray.data.sources import Concatenation, open_sources
    from sppo_ray.models.exported_critic import ExportedCritic, check_value_head, critic_directory
    from sppo_ray.trainer.solvability import histogram_text, write_map
    from sppo_ray.trainer.text import format_seconds, printable

    directory = critic_directory(options.critic)
    check_value_head(directory, required=True)
    settings = _settings(directory, options.data, overrides)
    rows = Concatenation("map", open_sources(settings.data.train, "--data"))
    critic = ExportedCritic(directory, device=settings.device)
    encoder = PromptEncoder(critic.tokenizer, critic.tokenizer, settings.data)
    started = time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("prompts", total=len(rows))
        found = write_map(options.out, rows, encoder, critic, lambda done, total: progress.update(task, completed=done))
    seconds = time.perf_counter() - started
    print(printable(histogram_text(found.values), sys.stdout))
    if found.longest_tokens > settings.data.max_prompt_tokens:
        print(
            f"the longest prompt has {found.longest_tokens} tokens, the critic learned on at most "
            f"{settings.data.max_prompt_tokens}: trust the values of longer ones less"
        )
    print(f"{found.count:,} prompts in {format_seconds(seconds)}, written: {options.out}")
    return 0


def _settings(directory: Path, data: Sequence[str], overrides: Sequence[str]) -> MapSettings:
    """How prompts are written: as the critic's card says, unless overridden."""
    from sppo_ray.trainer.calibration_card import read_card

    card = read_card(directory)
    as_learned = card["settings"]["data"] if card else {"max_prompt_tokens": sys.maxsize}
    tree = {"data": as_learned | {"train": [data_source(text) for text in data]}}
    return parse_settings(MapSettings, tree, overrides, "map")
