"""`sppo-ray map`: write the value of every prompt of a data set, by forwards of an exported
critic.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from sppo_ray.cli.shared import Overrides
from sppo_ray.errors import UserError

if TYPE_CHECKING:
    from sppo_ray.config.evaluation import MapSettings


def map_prompts(
    critic: Annotated[Path, Argument(help="an exported critic, or a run directory for its export/critic")],
    *,
    data: Annotated[list[str], Option(metavar="FILE...", help="prompts: Parquet, JSON lines, ...")],
    out: Annotated[Path, Option(metavar="FILE.parquet", help="file of the map")],
    overrides: Overrides,
) -> int:
    """Write the value of every prompt of a data set as Parquet."""
    if out.suffix != ".parquet" or out.is_dir():
        raise UserError(f"--out {out}: a map is a Parquet file, name it something.parquet")

    from rich.console import Console
    from rich.progress import Progress

    from sppo_ray.config.data import answer_notice
    from sppo_ray.data.encoder import PromptEncoder
    from sppo_ray.data.sources import Concatenation, open_sources
    from sppo_ray.evaluation.critic_card import settings_of_card, tools_of_card
    from sppo_ray.evaluation.prompt_map import histogram_text, write_map
    from sppo_ray.formatting import format_seconds, printable
    from sppo_ray.models.exported_critic import ExportedCritic, check_value_head, critic_directory

    directory = critic_directory(critic)
    check_value_head(directory, required=True)
    settings = _settings(directory, data, overrides)
    if settings.data.critic_suffix is not None:
        print(answer_notice(settings.data.critic_suffix), file=sys.stderr)
    if (settings_of_card(directory).get("environment") or {}).get("type") == "custom":
        print(
            "this critic learned on the first messages of an environment: its values need data of that "
            "kind, and are no guide to other prompts",
            file=sys.stderr,
        )
    rows = Concatenation("map", open_sources(settings.data.train, "--data"))
    exported = ExportedCritic(directory, device=settings.device)
    tools = tools_of_card(directory)
    encoder = PromptEncoder(exported.tokenizer, exported.tokenizer, settings.data, tools=tools)
    started = time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("prompts", total=len(rows))
        found = write_map(
            out, rows, encoder, exported, lambda done, total: progress.update(task, completed=done)
        )
    seconds = time.perf_counter() - started
    print(printable(histogram_text(found.values), sys.stdout))
    if found.longest_tokens > settings.data.max_prompt_tokens:
        print(
            f"the longest prompt has {found.longest_tokens} tokens, the critic learned on at most "
            f"{settings.data.max_prompt_tokens}: trust the values of longer ones less"
        )
    print(f"{found.count:,} prompts in {format_seconds(seconds)}, written: {out}")
    return 0


def _settings(directory: Path, data: Sequence[str], overrides: Sequence[str]) -> MapSettings:
    """Return the prompt format: the critic card's, unless overridden."""
    from sppo_ray.cli.eval_options import data_source
    from sppo_ray.config.evaluation import MapSettings
    from sppo_ray.config.loading import parse_settings
    from sppo_ray.evaluation.critic_card import settings_of_card

    as_learned = settings_of_card(directory)["data"] or {"max_prompt_tokens": sys.maxsize}
    tree = {"data": as_learned | {"train": [data_source(text) for text in data]}}
    return parse_settings(MapSettings, tree, overrides, "map")
