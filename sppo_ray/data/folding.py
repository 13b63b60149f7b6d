"""Evaluation files that hold every prompt several times.

The field writes "sample it 8 times" as a file with 8 copies of every row. Such a file is read as its distinct prompts. Copies
left as prompts of their own would make intervals too narrow, since the responses to one prompt are alike, and pass@k and maj@k
empty. Where only some prompts come again, each row stays a prompt of its own, and a note says how many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from sppo_ray.data.sources import Source
from sppo_ray.types import Example


@dataclass(frozen=True, slots=True)
class DistinctRows:
    """The prompts of an evaluation source."""

    examples: Sequence[Example]
    times: int  # that each of them comes in the source
    notes: tuple[str, ...]  # what a reader of the figures should know


def distinct_rows(source: Source, limit: int | None = None) -> DistinctRows:
    """The first `limit` (None = all) distinct prompts of `source`, in its order."""
    if source.procedural:  # rows are made on demand, and equal ones are draws of the task like any other
        return DistinctRows(source.examples(range(min(limit or len(source), len(source)))), 1, ())
    rows = source.examples(range(len(source)))
    examples, times = fold(rows)
    return DistinctRows(examples[:limit], times, _notes(source.name, rows, examples, times))


def fold(examples: Sequence[Example]) -> tuple[list[Example], int]:
    """The distinct examples in their order and how often each comes, or (examples, 1) when not all come equally often."""
    keys = [_key(example) for example in examples]
    times = set(Counter(keys).values())
    if times == {1} or len(times) > 1:
        return list(examples), 1
    distinct: dict[Hashable, Example] = {}
    for key, example in zip(keys, examples, strict=True):
        distinct.setdefault(key, example)
    return list(distinct.values()), times.pop()


def _key(example: Example) -> Hashable:
    return tuple((m["role"], m["content"]) for m in example.messages), example.ground_truth, example.source


def _notes(name: str, rows: Sequence[Example], distinct: Sequence[Example], times: int) -> tuple[str, ...]:
    if times > 1:
        return (f"{name}: holds each of its {len(distinct)} prompts {times} times; read as {len(distinct)} prompts",)
    again = len(rows) - len({_key(row) for row in rows})
    return (f"{name}: {again} of {len(rows)} rows repeat another; each counts as a prompt of its own",) if again else ()
