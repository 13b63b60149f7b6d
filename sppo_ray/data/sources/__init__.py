"""Reads prompts. Each `DataSource` type of the configuration has one reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sppo_ray import plugins
from sppo_ray.config import DataSource
from sppo_ray.config.data import source_name
from sppo_ray.data.sources.base import Concatenation, Reset, ResetSource, Source
from sppo_ray.data.sources.files import (
    bytes_of,
    open_hf,
    open_hf_disk,
    open_jsonl,
    open_parquet,
    peek_hf_disk,
    peek_jsonl,
    peek_parquet,
)
from sppo_ray.data.sources.procedural import (
    open_guess_number,
    open_numbered,
    open_product,
    open_reasoning_gym,
    open_register_machine,
    open_running_sum,
    open_vowels,
)
from sppo_ray.errors import UserError
from sppo_ray.types import Example

__all__ = ["Concatenation", "Reset", "Source", "first_example", "open_sources", "peek_sources"]

_OPEN: dict[str, Callable[..., Source]] = {
    "running-sum": open_running_sum,
    "register-machine": open_register_machine,
    "guess-number": open_guess_number,
    "product": open_product,
    "vowels": open_vowels,
    "environment": open_numbered,
    "parquet": open_parquet,
    "jsonl": open_jsonl,
    "hf-disk": open_hf_disk,
    "hf": open_hf,
    "reasoning-gym": open_reasoning_gym,
}

_PEEK: dict[str, Callable[..., None]] = {
    "parquet": peek_parquet,
    "jsonl": peek_jsonl,
    "hf-disk": peek_hf_disk,
}

READ_AT_ONCE = 64 << 20  # bytes of files that are read in a second or two


def peek_sources(settings: Sequence[DataSource], origin: str = "data.train") -> None:
    """Check in a fraction of a second that the files of each source exist and have the columns;
    small files are checked whole. Raises UserError as `open_sources` does.
    """
    for index, source in enumerate(settings):
        if source.type in _PEEK:
            _PEEK[source.type](source, f"{origin}[{index}]")


def first_example(settings: Sequence[DataSource], origin: str = "data.train") -> Example | None:
    """Return the first row of the first source; None where that could take long: over 64 MiB of
    files, a Hugging Face dataset. Raises UserError as `open_sources` does.
    """
    source, where = settings[0], f"{origin}[0]"
    if source.type in ("hf", "hf-disk"):
        return None
    if source.type in ("parquet", "jsonl") and bytes_of(source, where) > READ_AT_ONCE:
        return None
    return _open(source, source_name(source), where)[0]


def open_sources(
    settings: Sequence[DataSource], origin: str = "data.train", reset: Reset | None = None
) -> list[Source]:
    """Open each source and do all checks that need no tokenizer.

    A second source with the same name is called `name#2`, so example ids are unique. Errors name
    the setting `origin`. `reset`: of an environment that makes the first messages. Raises UserError
    naming the file, the row and the field, for equal entries, and for rows without messages where
    there is no `reset`.
    """
    sources: list[Source] = []
    uses: dict[str, int] = {}
    for index, source in enumerate(settings):
        where = f"{origin}[{index}]"
        first = settings.index(source)
        if first != index:
            raise UserError(
                f"{where} repeats {origin}[{first}], every prompt of it would come twice: remove one of them"
            )
        base = source_name(source)
        uses[base] = uses.get(base, 0) + 1
        name = base if uses[base] == 1 else f"{base}#{uses[base]}"
        if source.type == "environment" and reset is None:
            raise UserError(
                f"{where}: its rows are only numbers, from which an environment makes the first messages: "
                "give the class of environment.environment a method reset(seed), or use other data"
            )
        opened = _open(source, name, where)
        sources.append(opened if reset is None else ResetSource(opened, reset))
    return sources


def _open(source: DataSource, name: str, where: str) -> Source:
    if source.type in _OPEN:
        return _OPEN[source.type](source, name, where)
    return plugins.load("data", source.type).open(source, name)
