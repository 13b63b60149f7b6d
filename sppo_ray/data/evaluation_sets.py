"""Evaluation files as sets of prompts with a number of samples each.

The field writes "sample it 8 times" as a file that holds every prompt 8 times. Such a file is read as its distinct
prompts, sampled 8 times each (or as often as the settings say). Where only some prompts come again, each row stays a
prompt of its own, and a note says how many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from sppo_ray.data.encoder import PromptEncoder, longest
from sppo_ray.data.sources import Source, open_sources
from sppo_ray.errors import UserError
from sppo_ray.evaluation_config import EvaluationConfig
from sppo_ray.types import Example, Prompt


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The prompts of one source, in its order."""

    name: str
    prompts: tuple[Prompt, ...]
    samples_per_prompt: int
    notes: tuple[str, ...]  # what a reader of the figures should know


def load_evaluation_sets(config: EvaluationConfig, encoder: PromptEncoder, max_prompt_tokens: int) -> list[EvaluationSet]:
    """Read and encode all sources of `data.held_out`.

    Raises UserError naming file, row and field for what cannot be read, for prompts longer than `max_prompt_tokens`
    (unless they are to be dropped), and when a pass@k needs more samples than a set has.
    """
    sets = [_load(source, config, encoder, max_prompt_tokens) for source in open_sources(config.data.held_out, "--data")]
    _require_samples(sets, config.eval.pass_k)
    return sets


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


def _load(source: Source, config: EvaluationConfig, encoder: PromptEncoder, max_prompt_tokens: int) -> EvaluationSet:
    limit = config.eval.prompts
    notes = []
    if source.procedural:  # rows are made on demand, and equal ones are draws of the task like any other
        examples, times = source.examples(range(min(limit or len(source), len(source)))), 1
    else:
        rows = source.examples(range(len(source)))
        examples, times = fold(rows)
        notes += _repetition_notes(source.name, rows, examples, times)
        examples = examples[:limit]
    prompts = encoder.encode(examples)
    fitting = [prompt for prompt in prompts if longest(prompt) <= max_prompt_tokens]
    if len(fitting) < len(prompts):
        long = [prompt for prompt in prompts if longest(prompt) > max_prompt_tokens]
        if config.data.overlong_prompts == "refuse" or not fitting:
            _refuse_overlong(long, max_prompt_tokens)
        notes.append(f"{source.name}: left out {len(long)} prompts of more than {max_prompt_tokens} tokens")
    # Greedy samples of a prompt are all the same.
    samples = config.eval.samples_per_prompt or (1 if config.temperature == 0 else times)
    return EvaluationSet(source.name, tuple(fitting), samples, tuple(notes))


def _repetition_notes(name: str, rows: Sequence[Example], distinct: Sequence[Example], times: int) -> list[str]:
    if times > 1:
        return [f"{name}: holds each of its {len(distinct)} prompts {times} times; read as {len(distinct)} prompts"]
    again = len(rows) - len({_key(row) for row in rows})
    return [f"{name}: {again} of {len(rows)} rows repeat another; each counts as a prompt of its own"] if again else []


def _refuse_overlong(long: Sequence[Prompt], limit: int) -> None:
    most = max(longest(prompt) for prompt in long)
    more = f" (and {len(long) - 1} more, the longest of {most})" if len(long) > 1 else ""
    raise UserError(
        f"prompt {long[0].id}: {longest(long[0])} tokens{more}, and there is room for {limit}: lower --max-response-tokens, "
        "raise --data.max_prompt_tokens where it is set, or leave such prompts out with --data.overlong_prompts=drop"
    )


def _require_samples(sets: Sequence[EvaluationSet], pass_k: Sequence[int]) -> None:
    most = max(pass_k, default=1)
    short = [one for one in sets if one.samples_per_prompt < most]
    if short:
        raise UserError(
            f"pass@{most} needs at least {most} samples a prompt, and {short[0].name} has {short[0].samples_per_prompt}: add "
            f"-k {most}, or take {most} out of --pass-k"
        )
