"""Samples on a CPU with noise that is a function of (request seed, position).

vLLM draws one number per step from the generator of each request, which takes a tenth of a step on
a CPU. Here the number is a hash of the request's seed and its number of drawn tokens, computed for
the whole batch. So a sample depends only on its own seed and not on its batch. vLLM's kernel
expands the number to Gumbel noise for each token and takes the argmax.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_TO_31_BITS = np.uint64(33)
_MANY = 8192
"""Above this number of generators, those of finished requests are removed."""


class Draws:
    """Counts the tokens that each request has drawn. vLLM passes generators without positions."""

    def __init__(self) -> None:
        self._drawn: dict[int, list[Any]] = {}  # id of the generator: [generator, seed, count]

    def numbers(self, generators: dict[int, torch.Generator], batch: int) -> Tensor:
        """Return the next number of each row, [batch] int64 in [0, 2^31). Rows without a generator
        get random numbers.
        """
        numbers = torch.randint(0, 2**31, (batch,), dtype=torch.int64)
        if not generators:
            return numbers
        entries = [self._entry(generator) for generator in generators.values()]
        seeds = np.array([entry[1] for entry in entries], dtype=np.uint64)
        positions = np.array([entry[2] for entry in entries], dtype=np.uint64)
        for entry in entries:
            entry[2] += 1
        numbers[list(generators)] = torch.from_numpy(keyed_numbers(seeds, positions))
        if len(self._drawn) > _MANY:
            self._forget_finished()
        return numbers

    def _entry(self, generator: torch.Generator) -> list[Any]:
        entry = self._drawn.get(id(generator))
        if entry is None:
            entry = self._drawn[id(generator)] = [generator, generator.initial_seed(), 0]
        return entry

    def _forget_finished(self) -> None:
        """Remove the generators that vLLM has released."""
        # the two references are the entry and the argument of the call
        self._drawn = {key: entry for key, entry in self._drawn.items() if sys.getrefcount(entry[0]) > 2}


def keyed_numbers(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return the upper 31 bits of SplitMix64 of (seed, position): [N] int64 from two [N] uint64."""
    with np.errstate(over="ignore"):
        mixed = _mix(seeds) + (positions + np.uint64(1)) * _GOLDEN
        return (_mix(mixed) >> _TO_31_BITS).astype(np.int64)


def _mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014)."""
    state = (state ^ (state >> _SHIFTS[0])) * _FACTORS[0]
    state = (state ^ (state >> _SHIFTS[1])) * _FACTORS[1]
    return state ^ (state >> _SHIFTS[2])


def install() -> None:
    """Patch vLLM's CPU sampler to use these numbers. A second call has no effect."""
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p

    if TopKTopPSampler.forward_cpu.__module__ == __name__:
        return
    draws = Draws()

    def forward_cpu(
        self: Any,
        logits: Tensor,
        generators: dict[int, torch.Generator],
        k: Tensor | None,
        p: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Copy of vLLM's method with other random numbers."""
        logits = apply_top_k_top_p(logits, k, p)
        returned = None
        if self.logprobs_mode == "processed_logits":
            returned = logits
        elif self.logprobs_mode == "processed_logprobs":
            returned = logits.log_softmax(dim=-1, dtype=torch.float32)
        numbers = draws.numbers(generators, logits.shape[0])
        return torch.ops._C.fused_gumbel_argmax(logits.float(), numbers), returned

    TopKTopPSampler.forward_cpu = forward_cpu
