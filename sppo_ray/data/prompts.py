"""Selects the prompts of each step in an endless shuffled order.

    sources --concatenate--> rows 0 .. n-1 --permute per epoch, drop unfit rows--> cohort(0), cohort(1), ...

`cohort(k)` is a pure function of settings, seed and k, so a resumed run gets the prompts of the
uninterrupted run, and a checkpoint stores no position. Rows of files are checked when the stream
is created. Procedural sources may have millions of rows, so their rows are checked when the first
epoch reaches them.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sppo_ray.config import DataSettings
from sppo_ray.data.encoder import PromptEncoder, longest
from sppo_ray.data.folding import distinct_rows
from sppo_ray.data.sources import Concatenation, Source, open_sources
from sppo_ray.errors import UserError
from sppo_ray.types import Example, Prompt

__all__ = ["PromptEncoder", "PromptStats", "PromptStream", "load_held_out"]

_logger = logging.getLogger(__name__)
_BLOCK_ROWS = 1024  # rows encoded at a time
_UNKNOWN, _KEPT, _TOO_LONG, _HELD_OUT = range(4)


@dataclass(frozen=True, slots=True)
class PromptStats:
    """Statistics of the training prompts that have been checked."""

    total: int  # rows of all sources
    judged: int  # rows that have been checked; < total only with procedural sources
    dropped_overlong: int
    dropped_held_out: int  # rows that are also in a held-out set
    tokens_min: int  # policy tokens of the kept prompts tokenized so far; 0 when there is none
    tokens_median: float
    tokens_max: int


class PromptStream:
    """The endless sequence of training prompts."""

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: PromptEncoder,
        settings: DataSettings,
        seed: int,
        *,
        share: float = 1.0,
    ) -> None:
        """Check length and overlap with `settings.held_out` for the rows of all files. `share`: of
        a step's prompts, for one of several weighted sources (`mixing.py`).

        `held_out_overlap` decides whether a held-out prompt in a file is an error or is dropped. A
        held-out prompt from a procedural source is a coincidence and is always dropped. Raises
        UserError for held-out prompts in files, for overlong prompts (unless the settings drop
        them) and when no prompt is left.
        """
        self._rows = Concatenation("train", sources)
        self._encoder = encoder
        self._settings = settings
        self._seed = seed
        self._per_step = round(settings.prompts_per_step * share)
        self._held_out = {} if settings.held_out_overlap == "allow" else _held_out_ids(settings, encoder)
        self._state = np.full(len(self._rows), _UNKNOWN, dtype=np.uint8)  # [rows]
        # [rows] policy tokens; 0 = not tokenized yet
        self._tokens = np.zeros(len(self._rows), dtype=np.int32)
        for source, start in zip(sources, self._rows.starts[:-1], strict=True):
            self._judge_at_start(source, int(start))
        self._tell_of_repeats(sources)
        self._first_order = self._order(0)
        self._num_scanned = 0  # leading rows of the first epoch that are judged
        self._num_kept = 0  # kept rows among them
        self._warned = False
        self._rows_at(0, 1)  # fails here, not in the first step, when no prompt is left

    def cohort(self, step: int) -> list[Prompt]:
        """Return the `prompts_per_step` prompts of step `step` (from 0).

        Each kept prompt occurs once per epoch. A cohort may span epochs. With fewer prompts than
        `prompts_per_step`, a cohort repeats prompts. Raises UserError for an overlong prompt.
        """
        size = self._settings.prompts_per_step
        return self.between(step * size, (step + 1) * size)

    def between(self, start: int, stop: int) -> list[Prompt]:
        """Return the prompts at positions [start, stop) of the endless order."""
        rows = self._rows_at(start, stop)
        prompts = self._encoder.encode(self._rows.examples(rows))
        long = [prompt for prompt in prompts if not _fits(prompt, self._settings)]
        _refuse_overlong(long, self._settings, "data.train")
        self._tokens[rows] = [len(prompt.token_ids) for prompt in prompts]
        return prompts

    def stats(self) -> PromptStats:
        tokens = self._tokens[(self._state == _KEPT) & (self._tokens > 0)]
        return PromptStats(
            total=len(self._rows),
            judged=int(np.count_nonzero(self._state)),
            dropped_overlong=int(np.count_nonzero(self._state == _TOO_LONG)),
            dropped_held_out=int(np.count_nonzero(self._state == _HELD_OUT)),
            tokens_min=int(tokens.min()) if tokens.size else 0,
            tokens_median=float(np.median(tokens)) if tokens.size else 0.0,
            tokens_max=int(tokens.max()) if tokens.size else 0,
        )

    # ---------------------------------------------------------------------------------------- order

    def _order(self, epoch: int) -> np.ndarray:
        """Return a permutation of all rows, [rows] int64."""
        if not self._settings.shuffle:
            return np.arange(len(self._rows))
        # Sort random bits: NumPy keeps the bit stream stable, but not Generator.permutation.
        keys = np.random.PCG64(np.random.SeedSequence((self._seed, epoch))).random_raw(len(self._rows))
        return np.argsort(keys, kind="stable")

    def _rows_at(self, start: int, stop: int) -> np.ndarray:
        """Return the rows at positions [start, stop) of the endless order, [stop - start] int64."""
        self._scan(stop)
        first = self._kept(self._first_order[: self._num_scanned])
        if first.size >= stop:
            return first[start:stop]
        # There are fewer, so the scan has judged every row of the epoch.
        size = first.size
        self._check_size(size)
        if start == stop:  # a mix may draw nothing from a source of small weight
            return first[:0]
        epochs = range(start // size, (stop - 1) // size + 1)
        rows = np.concatenate([first if epoch == 0 else self._kept(self._order(epoch)) for epoch in epochs])
        return rows[start - epochs[0] * size : stop - epochs[0] * size]

    def _scan(self, wanted: int) -> None:
        """Judge the first epoch's rows in order, until `wanted` are kept or the epoch ends."""
        while self._num_kept < wanted and self._num_scanned < len(self._rows):
            block = self._first_order[self._num_scanned : self._num_scanned + _BLOCK_ROWS]
            self._judge(
                block[self._state[block] == _UNKNOWN], measure=self._settings.overlong_prompts == "drop"
            )
            self._num_scanned += block.size
            self._num_kept += int(np.count_nonzero(self._state[block] == _KEPT))

    def _kept(self, rows: np.ndarray) -> np.ndarray:
        return rows[self._state[rows] == _KEPT]

    def _check_size(self, size: int) -> None:
        if size == 0:
            stats = self.stats()
            raise UserError(
                f"data.train: none of its {stats.total} prompts is left ({stats.dropped_overlong} are longer "
                "than "
                f"data.max_prompt_tokens {self._settings.max_prompt_tokens}, {stats.dropped_held_out} are in "
                "a held-out set): "
                "raise the limit, or train on other prompts than data.held_out"
            )
        if size < self._per_step and not self._warned:
            self._warned = True
            _logger.warning(
                "data.train has %d prompts, a step takes %d: steps repeat some prompts", size, self._per_step
            )

    # -------------------------------------------------------------------------------------- judging

    def _judge_at_start(self, source: Source, start: int) -> None:
        rows = np.arange(start, start + len(source))
        if not source.procedural:
            for block in np.split(rows, range(_BLOCK_ROWS, rows.size, _BLOCK_ROWS)):
                self._judge(block, measure=True)
            if self._settings.held_out_overlap == "refuse":
                self._refuse_overlap(rows[self._state[rows] == _HELD_OUT])
            if self._settings.overlong_prompts == "refuse":
                unfit = rows[self._state[rows] == _TOO_LONG]
                long = self._encoder.encode(self._rows.examples(unfit))
                _refuse_overlong(long, self._settings, "data.train")
        elif not self._held_out and self._settings.overlong_prompts == "refuse":
            self._state[rows] = _KEPT  # no check applies; cohort() refuses overlong prompts

    def _judge(self, rows: np.ndarray, *, measure: bool) -> None:
        """Set `_state[rows]`. Overlong rows are found only with `measure`, which tokenizes them."""
        if not rows.size:
            return
        examples = self._rows.examples(rows)
        held_out = np.array([_fingerprint(example) in self._held_out for example in examples])
        too_long = np.zeros(rows.size, dtype=bool)
        if measure:
            prompts = self._encoder.encode(examples)
            self._tokens[rows] = [len(prompt.token_ids) for prompt in prompts]
            too_long[:] = [not _fits(prompt, self._settings) for prompt in prompts]
        self._state[rows] = np.select([held_out, too_long], [_HELD_OUT, _TOO_LONG], _KEPT)

    def _tell_of_repeats(self, sources: Sequence[Source]) -> None:
        """Count the rows of files whose prompt another row has too."""
        files = [source for source in sources if not source.procedural]
        seen = Counter(_fingerprint(example) for source in files for example in _examples(source))
        again = seen.total() - len(seen)
        if again:
            _logger.warning(
                "data.train: %d of %d rows repeat the prompt of another: an epoch trains on it as often",
                again,
                seen.total(),
            )

    def _refuse_overlap(self, rows: np.ndarray) -> None:
        if rows.size:
            pairs = [
                f"{example.id} = {self._held_out[_fingerprint(example)]}"
                for example in self._rows.examples(rows[:3])
            ]
            shown = ", ".join(pairs) + (", ..." if rows.size > 3 else "")
            raise UserError(
                f"data.train: {rows.size} prompts are also in data.held_out ({shown}): an evaluation on them "
                "measures memory; set data.held_out_overlap=drop to leave them out of training, or remove "
                "them from either file"
            )


def load_held_out(
    settings: DataSettings, encoder: PromptEncoder, limit: int | None = None
) -> dict[str, list[Prompt]]:
    """Return the first `limit` (None = all) distinct prompts of each evaluation set, by name.

    Overlong prompts are refused, or dropped with a logged count. Raises UserError for unreadable
    data and for a set without prompts.
    """
    sets: dict[str, list[Prompt]] = {}
    for source in open_sources(settings.held_out, "data.held_out", encoder.reset):
        rows = distinct_rows(source, limit)
        for note in rows.notes:
            _logger.warning("data.held_out: %s", note)
        prompts = encoder.encode(rows.examples)
        fitting = [prompt for prompt in prompts if _fits(prompt, settings)]
        if len(fitting) < len(prompts):
            if settings.overlong_prompts == "refuse" or not fitting:
                long = [prompt for prompt in prompts if not _fits(prompt, settings)]
                _refuse_overlong(long, settings, "data.held_out")
            _logger.warning(
                "data.held_out: %s: left out %d over-long prompts", source.name, len(prompts) - len(fitting)
            )
        sets[source.name] = fitting
    return sets


def _examples(source: Source) -> Iterator[Example]:
    for start in range(0, len(source), _BLOCK_ROWS):
        yield from source.examples(range(start, min(start + _BLOCK_ROWS, len(source))))


def _held_out_ids(settings: DataSettings, encoder: PromptEncoder) -> dict[bytes, str]:
    """Return the ids of the held-out prompts by fingerprint."""
    sources = open_sources(settings.held_out, "data.held_out", encoder.reset)
    return {
        _fingerprint(example): example.id
        for source in sources
        for example in source.examples(range(len(source)))
    }


def _fingerprint(example: Example) -> bytes:
    """Hash the user messages, independently of white space, Unicode form and system messages. Two
    prompts with the same hash count as equal.
    """
    texts = [message["content"] for message in example.messages if message["role"] == "user"]
    text = " ".join("\n".join(texts or [message["content"] for message in example.messages]).split())
    return hashlib.blake2b(unicodedata.normalize("NFKC", text).encode(), digest_size=16).digest()


def _fits(prompt: Prompt, settings: DataSettings) -> bool:
    return longest(prompt) <= settings.max_prompt_tokens


def _refuse_overlong(prompts: Sequence[Prompt], settings: DataSettings, where: str) -> None:
    if prompts:
        first, most = prompts[0], max(longest(prompt) for prompt in prompts)
        more = f" (and {len(prompts) - 1} more, the longest of {most})" if len(prompts) > 1 else ""
        reader = "critic.model" if len(first.critic_token_ids) > len(first.token_ids) else "learner.model"
        raise UserError(
            f"{where}: prompt {first.id}: {longest(first)} tokens{more} as {reader} reads it, "
            f"data.max_prompt_tokens is {settings.max_prompt_tokens}: "
            f"raise it to {most}, or set data.overlong_prompts=drop to leave such prompts out"
        )
