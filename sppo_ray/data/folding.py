"""Reads the distinct prompts of an evaluation file that repeats each prompt equally often.

Benchmarks with 8 samples per prompt are often distributed as a file with 8 copies of every row. If
each copy counted as a prompt, confidence intervals would be too narrow, because responses to one
prompt are correlated, and pass@k and maj@k would be undefined. If only some prompts are repeated,
every row counts as a prompt, and a note states the number of repeated rows.
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
    times: int  # copies of each prompt in the source
    notes: tuple[str, ...]  # messages for the reader of the results


def distinct_rows(source: Source, limit: int | None = None) -> DistinctRows:
    """Return the first `limit` (None = all) distinct prompts of `source`, in order."""
    # Rows of a procedural source are independent draws, so equal rows are not copies.
    if source.procedural:
        return DistinctRows(source.examples(range(min(limit or len(source), len(source)))), 1, ())
    rows = source.examples(range(len(source)))
    examples, times = fold(rows)
    return DistinctRows(examples[:limit], times, _notes(source.name, rows, examples, times))


def fold(examples: Sequence[Example]) -> tuple[list[Example], int]:
    """Return the distinct examples in order and the number of copies of each.

    Returns (examples, 1) when the numbers of copies differ.
    """
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
        return (
            f"{name}: holds each of its {len(distinct)} prompts {times} times; read as {len(distinct)} "
            "prompts",
        )
    again = len(rows) - len({_key(row) for row in rows})
    return (
        (f"{name}: {again} of {len(rows)} rows repeat another; each counts as a prompt of its own",)
        if again
        else ()
    )
