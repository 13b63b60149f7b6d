"""Mixes training sources in given proportions.

position p of the endless order --> a source, by its weight --> that source's next prompt
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sppo_ray.config import DataSettings
from sppo_ray.data.prompts import PromptEncoder, PromptStream
from sppo_ray.data.sources import Source, open_sources
from sppo_ray.protocols import PromptSource
from sppo_ray.types import Prompt

_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, fill [0, 1) evenly: of n positions a source of share w gets w n, up to
a few (Weyl's sequence).
"""


def open_prompts(settings: DataSettings, encoder: PromptEncoder, seed: int) -> PromptSource:
    """Open the training prompts. Raises UserError as `PromptStream` does."""
    sources = open_sources(settings.train, reset=encoder.reset)
    weights = [source.weight for source in settings.train]
    if None in weights:
        return PromptStream(sources, encoder, settings, seed)
    return PromptMix(sources, weights, encoder, settings, seed)


class PromptMix:
    """Prompts of several sources, each with its own `PromptStream`."""

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        encoder: PromptEncoder,
        settings: DataSettings,
        seed: int,
    ) -> None:
        """Raises UserError as `PromptStream` does."""
        shares = np.array(weights) / sum(weights)
        self._borders = np.cumsum(shares)[:-1]
        self._size = settings.prompts_per_step
        self._streams = [
            PromptStream([source], encoder, settings, seed, share=share)
            for source, share in zip(sources, shares.tolist(), strict=True)
        ]

    def cohort(self, step: int) -> list[Prompt]:
        """Return the prompts of a step (from 0), a pure function of settings, seed and step."""
        start, stop = step * self._size, (step + 1) * self._size
        source_of = self._sources(stop)
        before = np.bincount(source_of[:start], minlength=len(self._streams))
        until = np.bincount(source_of, minlength=len(self._streams))
        drawn = [
            iter(stream.between(int(first), int(last)))
            for stream, first, last in zip(self._streams, before, until, strict=True)
        ]
        return [next(drawn[source]) for source in source_of[start:]]

    def _sources(self, stop: int) -> np.ndarray:
        """Return the number of the source of each position below `stop`, [stop] int64."""
        return np.searchsorted(self._borders, np.arange(1, stop + 1) * _GOLDEN % 1.0, side="right")
