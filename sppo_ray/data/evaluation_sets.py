"""Reads evaluation files as sets of prompts with a number of samples per prompt.

The number comes from the settings, or from the number of copies of each prompt in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sppo_ray.config.evaluation import EvaluationConfig
from sppo_ray.data.encoder import PromptEncoder, longest
from sppo_ray.data.folding import distinct_rows
from sppo_ray.data.sources import Source, open_sources
from sppo_ray.errors import UserError
from sppo_ray.types import Prompt


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The prompts of one source, in the order of the source."""

    name: str
    prompts: tuple[Prompt, ...]
    samples_per_prompt: int
    notes: tuple[str, ...]  # messages for the reader of the results


def load_evaluation_sets(
    config: EvaluationConfig, encoder: PromptEncoder, max_prompt_tokens: int
) -> list[EvaluationSet]:
    """Read and encode all sources of `data.held_out`.

    Raises UserError naming file, row and field for unreadable data, for prompts longer than
    `max_prompt_tokens` (unless the settings drop them), and when a pass@k needs more samples than a
    set has.
    """
    sets = [
        _load(source, config, encoder, max_prompt_tokens)
        for source in open_sources(config.data.held_out, "--data", encoder.reset)
    ]
    _require_samples(sets, config.eval.pass_k)
    return sets


def _load(
    source: Source, config: EvaluationConfig, encoder: PromptEncoder, max_prompt_tokens: int
) -> EvaluationSet:
    rows = distinct_rows(source, config.eval.prompts)
    notes = list(rows.notes)
    prompts = encoder.encode(rows.examples)
    fitting = [prompt for prompt in prompts if longest(prompt) <= max_prompt_tokens]
    if len(fitting) < len(prompts):
        long = [prompt for prompt in prompts if longest(prompt) > max_prompt_tokens]
        if config.data.overlong_prompts == "refuse" or not fitting:
            _refuse_overlong(long, max_prompt_tokens)
        notes.append(f"{source.name}: left out {len(long)} prompts of more than {max_prompt_tokens} tokens")
    # All greedy samples of a prompt are equal, so one is enough.
    samples = config.eval.samples_per_prompt or (1 if config.temperature == 0 else rows.times)
    return EvaluationSet(source.name, tuple(fitting), samples, tuple(notes))


def _refuse_overlong(long: Sequence[Prompt], limit: int) -> None:
    most = max(longest(prompt) for prompt in long)
    more = f" (and {len(long) - 1} more, the longest of {most})" if len(long) > 1 else ""
    raise UserError(
        f"prompt {long[0].id}: {longest(long[0])} tokens{more}, and there is room for {limit}: lower "
        "--max-response-tokens, "
        "raise --data.max_prompt_tokens where it is set, or leave such prompts out with "
        "--data.overlong_prompts=drop"
    )


def _require_samples(sets: Sequence[EvaluationSet], pass_k: Sequence[int]) -> None:
    most = max(pass_k, default=1)
    short = [one for one in sets if one.samples_per_prompt < most]
    if short:
        raise UserError(
            f"pass@{most} needs at least {most} samples a prompt, and {short[0].name} has "
            f"{short[0].samples_per_prompt}: add "
            f"-k {most}, or take {most} out of --pass-k"
        )
