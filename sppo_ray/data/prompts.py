"""Which prompts a step trains on: an endless, shuffled order that depends on nothing but (settings, seed, step).

    sources ---concatenated---> rows 0 .. n-1 ---permuted anew each epoch, unfit rows left out---> cohort(0), cohort(1), ...

A resumed run asks for `cohort(k)` and gets what the uninterrupted run would have got; there is no cursor to save.
Rows of files are judged when the stream is made. Rows of procedural sources are judged as the first epoch reaches
them, and only for as much as the settings ask, since there may be millions.
"""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Sequence
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
    """What is known of the training prompts so far."""

    total: int  # rows of all sources
    judged: int  # rows whose fitness is settled; < total only with procedural sources
    dropped_overlong: int
    dropped_held_out: int  # rows of procedural sources that are also in a held-out set
    tokens_min: int  # policy tokens of the kept prompts that have been tokenized; 0 when none has
    tokens_median: float
    tokens_max: int


class PromptStream:
    """The training prompts in the order in which the steps take them."""

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: PromptEncoder,
        settings: DataSettings,
        seed: int,
    ) -> None:
        """Judges the rows of all files: length, and overlap with `settings.held_out`.

        A prompt of a FILE that is also held out is an error, or left out and counted, as `held_out_overlap` says. One of
        a PROCEDURAL source is a chance hit and always left out. Raises UserError for the former, for over-long prompts
        (unless they are to be dropped) and when no prompt is left.
        """
        self._rows = Concatenation("train", sources)
        self._encoder = encoder
        self._settings = settings
        self._seed = seed
        self._held_out = {} if settings.held_out_overlap == "allow" else _held_out_ids(settings)
        self._state = np.full(len(self._rows), _UNKNOWN, dtype=np.uint8)  # [rows]
        self._tokens = np.zeros(len(self._rows), dtype=np.int32)  # [rows] policy tokens; 0 = not tokenized yet
        for source, start in zip(sources, self._rows.starts[:-1], strict=True):
            self._judge_at_start(source, int(start))
        self._first_order = self._order(0)
        self._num_scanned = 0  # places of the first epoch whose rows are judged
        self._num_kept = 0  # of those, kept
        self._warned = False
        self._places(0, 1)  # fails now and not in the first step when nothing is left

    def cohort(self, step: int) -> list[Prompt]:
        """The `prompts_per_step` prompts of step `step` (from 0).

        Within an epoch each kept prompt comes once; a cohort may span epochs, and with fewer prompts than
        `prompts_per_step` holds some more than once. Raises UserError for an over-long prompt.
        """
        size = self._settings.prompts_per_step
        rows = self._places(step * size, (step + 1) * size)
        prompts = self._encoder.encode(self._rows.examples(rows))
        _refuse_overlong([prompt for prompt in prompts if not _fits(prompt, self._settings)], self._settings)
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

    # ----------------------------------------------------------------------------------------------- order

    def _order(self, epoch: int) -> np.ndarray:
        """int64[rows]: a permutation of all rows."""
        if not self._settings.shuffle:
            return np.arange(len(self._rows))
        # Sorting raw bits: NumPy promises them for ever, and Generator.permutation only for a release.
        keys = np.random.PCG64(np.random.SeedSequence((self._seed, epoch))).random_raw(len(self._rows))
        return np.argsort(keys, kind="stable")

    def _places(self, start: int, stop: int) -> np.ndarray:
        """int64[stop - start]: the rows at these places of the endless order of kept rows."""
        self._scan(stop)
        first = self._kept(self._first_order[: self._num_scanned])
        if first.size >= stop:
            return first[start:stop]
        # Fewer than asked for: the scan has reached the epoch's end, and the fate of every row is known.
        size = first.size
        self._check_size(size)
        epochs = range(start // size, (stop - 1) // size + 1)
        rows = np.concatenate([first if epoch == 0 else self._kept(self._order(epoch)) for epoch in epochs])
        return rows[start - epochs[0] * size : stop - epochs[0] * size]

    def _scan(self, wanted: int) -> None:
        """Judge the first epoch's rows in order, until `wanted` are kept or the epoch ends."""
        while self._num_kept < wanted and self._num_scanned < len(self._rows):
            block = self._first_order[self._num_scanned : self._num_scanned + _BLOCK_ROWS]
            self._judge(block[self._state[block] == _UNKNOWN], measure=self._settings.overlong_prompts == "drop")
            self._num_scanned += block.size
            self._num_kept += int(np.count_nonzero(self._state[block] == _KEPT))

    def _kept(self, rows: np.ndarray) -> np.ndarray:
        return rows[self._state[rows] == _KEPT]

    def _check_size(self, size: int) -> None:
        if size == 0:
            stats = self.stats()
            raise UserError(
                f"data.train: none of its {stats.total} prompts is left ({stats.dropped_overlong} are longer than "
                f"data.max_prompt_tokens {self._settings.max_prompt_tokens}, {stats.dropped_held_out} are in a held-out set): "
                "raise the limit, or train on other prompts than data.held_out"
            )
        a_step = self._settings.prompts_per_step
        if size < a_step and not self._warned:
            self._warned = True
            _logger.warning("data.train has %d prompts, a step takes %d: some come more than once in a step", size, a_step)

    # --------------------------------------------------------------------------------------------- judging

    def _judge_at_start(self, source: Source, start: int) -> None:
        rows = np.arange(start, start + len(source))
        if not source.procedural:
            for block in np.split(rows, range(_BLOCK_ROWS, rows.size, _BLOCK_ROWS)):
                self._judge(block, measure=True)
            if self._settings.held_out_overlap == "refuse":
                self._refuse_overlap(rows[self._state[rows] == _HELD_OUT])
            if self._settings.overlong_prompts == "refuse":
                unfit = rows[self._state[rows] == _TOO_LONG]
                _refuse_overlong(self._encoder.encode(self._rows.examples(unfit)), self._settings)
        elif not self._held_out and self._settings.overlong_prompts == "refuse":
            self._state[rows] = _KEPT  # nothing can drop them: cohort() refuses what is too long

    def _judge(self, rows: np.ndarray, *, measure: bool) -> None:
        """Settle `_state[rows]`; over-long rows are found only when told to `measure`, which tokenizes."""
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

    def _refuse_overlap(self, rows: np.ndarray) -> None:
        if rows.size:
            pairs = [f"{example.id} = {self._held_out[_fingerprint(example)]}" for example in self._rows.examples(rows[:3])]
            shown = ", ".join(pairs) + (", ..." if rows.size > 3 else "")
            raise UserError(
                f"data.train: {rows.size} prompts are also in data.held_out ({shown}): an evaluation on them "
                "measures memory; set data.held_out_overlap=drop to leave them out of training, or remove them from either file"
            )


def load_held_out(settings: DataSettings, encoder: PromptEncoder, limit: int | None = None) -> dict[str, list[Prompt]]:
    """The first `limit` (None = all) distinct prompts of each evaluation set, by the name of its source, in the file's order.

    Over-long prompts among them are refused, or dropped with a logged count. Raises UserError, also for a set of
    which none is left.
    """
    sets: dict[str, list[Prompt]] = {}
    for source in open_sources(settings.held_out, "data.held_out"):
        rows = distinct_rows(source, limit)
        for note in rows.notes:
            _logger.warning("data.held_out: %s", note)
        prompts = encoder.encode(rows.examples)
        fitting = [prompt for prompt in prompts if _fits(prompt, settings)]
        if len(fitting) < len(prompts):
            if settings.overlong_prompts == "refuse" or not fitting:
                _refuse_overlong([prompt for prompt in prompts if not _fits(prompt, settings)], settings)
            _logger.warning("data.held_out: %s: left out %d over-long prompts", source.name, len(prompts) - len(fitting))
        sets[source.name] = fitting
    return sets


def _held_out_ids(settings: DataSettings) -> dict[bytes, str]:
    """Fingerprint -> id of the held-out prompts."""
    sources = open_sources(settings.held_out, "data.held_out")
    return {_fingerprint(example): example.id for source in sources for example in source.examples(range(len(source)))}


def _fingerprint(example: Example) -> bytes:
    """What makes two prompts the same: the user's words, whatever their spacing, Unicode form and instructions before."""
    words = [message["content"] for message in example.messages if message["role"] == "user"]
    text = " ".join("\n".join(words or [message["content"] for message in example.messages]).split())
    return hashlib.blake2b(unicodedata.normalize("NFKC", text).encode(), digest_size=16).digest()


def _fits(prompt: Prompt, settings: DataSettings) -> bool:
    return longest(prompt) <= settings.max_prompt_tokens


def _refuse_overlong(prompts: Sequence[Prompt], settings: DataSettings) -> None:
    if prompts:
        first, most = prompts[0], max(longest(prompt) for prompt in prompts)
        more = f" (and {len(prompts) - 1} more, the longest of {most})" if len(prompts) > 1 else ""
        raise UserError(
            f"prompt {first.id}: {longest(first)} tokens{more}, data.max_prompt_tokens is {settings.max_prompt_tokens}: "
            f"raise it to {most}, or set data.overlong_prompts=drop to leave such prompts out"
        )
