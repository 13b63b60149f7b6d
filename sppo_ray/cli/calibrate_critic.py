"""The work of `sppo-ray calibrate`: compare a critic with its policy's solve rates, on held-out and
on training prompts.

run or (critic, policy) --> prompts of each set --+--> critic, by forwards here ----------> values       --+--> table, JSON,
                                                  '--> engines + verifier, k responses ---> solve rates  --'    plot
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_ray.algorithms.shaping import Shaping, unshaped
from sppo_ray.cli.eval_options import data_source, reward_function, tree_of, typed_settings
from sppo_ray.config import permissions
from sppo_ray.config.data import answer_notice
from sppo_ray.config.evaluation import EvaluationConfig, EvaluationData, EvaluationSampling
from sppo_ray.config.loading import load_config, parse_settings
from sppo_ray.data.encoder import PromptEncoder
from sppo_ray.data.prompts import load_held_out
from sppo_ray.display.reliability_plot import reliability_plot
from sppo_ray.errors import UserError
from sppo_ray.evaluation.calibration import HELD_OUT, SEEN
from sppo_ray.evaluation.critic_card import settings_of_card
from sppo_ray.evaluation.critic_measurement import (
    MeasuredSet,
    measured,
    seen_prompts,
    solve_rates,
    table_text,
    trained_prompts,
)
from sppo_ray.evaluation.sampler import Batch
from sppo_ray.launch.run_inputs import try_environment
from sppo_ray.launch.sampling import Checkpoint, open_checkpoint, sample
from sppo_ray.models.bundled import resolve_model
from sppo_ray.models.exported_critic import ExportedCritic, critic_directory
from sppo_ray.rewards.error_rate import require_few_errors
from sppo_ray.rundir.jsonlines import write_atomically
from sppo_ray.rundir.layout import CONFIG, RELIABILITY, RunDir
from sppo_ray.types import Prompt

_REPORTS = 5  # progress lines for each set of prompts


@dataclass(frozen=True, slots=True)
class Subject:
    """The critic and policy that are measured, with their settings."""

    config: EvaluationConfig
    critic: Path
    policy: Path
    run: Path | None  # the run directory of both
    shaped: Shaping  # the reward that the critic learned from


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the command line other than settings."""

    run_dir: Path | None
    critic: Path | None
    policy: str | None
    data: Sequence[str]
    seen: Sequence[str]
    reward: str | None
    granted: permissions.Grants
    k: int
    prompts: int
    bins: int
    out: Path | None


def run_calibration(options: Options, overrides: Sequence[str]) -> int:
    """Measure, print the table and write the results. Returns the exit code: 0, or 143 when
    terminated. Raises UserError.
    """
    _check(options)
    subject = _subject(options, overrides)
    exported, policy = ExportedCritic(subject.critic), open_checkpoint(subject.policy)
    sets = _prompt_sets(options, subject, policy, exported)
    found = _measure(options, subject, policy, exported, sets)
    if found is None:
        print("terminated: nothing was written", file=sys.stderr)
        return 128 + signal.SIGTERM
    _publish(options, subject, found)
    return 0


def _check(options: Options) -> None:
    for name, given in (("-k", options.k), ("--prompts", options.prompts)):
        if given < 1:
            raise UserError(f"{name} is {given}: at least one is needed")
    if options.bins < 2:
        raise UserError(f"--bins is {options.bins}: at least two bins are needed to tell predictions apart")
    pair = (options.critic is not None, options.policy is not None)
    if options.run_dir is not None and any(pair):
        raise UserError("give a run directory, or --critic and --policy, not both")
    if options.run_dir is None and not all(pair):
        raise UserError("give the directory of a finished run, or both --critic DIR and --policy MODEL")
    if options.run_dir is None and not options.data:
        raise UserError("--critic and --policy come without prompts: give held-out ones with --data FILE")
    if options.out is not None and options.out.is_file():
        raise UserError(f"--out {options.out} is a file: give a directory")


def _subject(options: Options, overrides: Sequence[str]) -> Subject:
    shaped: Shaping = unshaped
    if options.run_dir is None:
        exported, model = options.critic, options.policy
        tree = settings_of_card(critic_directory(options.critic))
    elif not RunDir(options.run_dir).config.is_file():
        raise UserError(
            f"run {options.run_dir}: no {CONFIG} in it, so it is not a run directory: check the path, or use "
            "--critic"
        )
    else:
        exported, model = options.run_dir, str(RunDir(options.run_dir).exported_policy)
        trained = load_config(str(RunDir(options.run_dir).config))
        tree = tree_of(trained) | {"eval": {}}
        tree["data"]["critic_suffix"] = trained.data.critic_suffix
        if trained.algorithm.overlong is not None:
            shaped = trained.shaped
            _report(
                "values are compared with rewards after the run's overlong shaping, as the critic was told "
                "them"
            )
    if options.data:
        tree["data"]["held_out"] = [data_source(text) for text in options.data]
    if not tree["data"]["held_out"]:
        raise UserError(
            f"run {options.run_dir}: has no data.held_out: give held-out prompts with --data FILE"
        )
    if options.reward is not None:
        tree["reward"]["function"] = reward_function(options.reward)
    config = parse_settings(EvaluationConfig, tree | {"model": model}, overrides, "calibrate")
    if config.data.critic_suffix is not None:
        _report(answer_notice(config.data.critic_suffix))
    origin = f"run {options.run_dir}" if options.run_dir is not None else f"critic {options.critic}"
    typed = typed_settings(options.reward, overrides)
    permissions.require_all(config, options.granted, typed, origin)
    critic, policy = critic_directory(exported), resolve_model(model)
    # The eval section belongs to `sppo-ray eval`; this command uses -k, --prompts and
    # rollout.temperature.
    used = config.model_copy(update={"model": str(policy), "eval": EvaluationSampling()})
    return Subject(used, critic, policy, options.run_dir, shaped)


def _prompt_sets(
    options: Options, subject: Subject, policy: Checkpoint, critic: ExportedCritic
) -> dict[str, list[Prompt]]:
    """Return the prompts of each set by name, without empty sets."""
    data = subject.config.data
    begun = try_environment(subject.config.environment)
    encoder = PromptEncoder(policy.tokenizer, critic.tokenizer, data, tools=begun.tools, reset=begun.reset)
    held_out = _load(data, encoder, options.prompts)
    if options.data and subject.run is not None:
        _refuse_trained(held_out, subject.run)
    if options.seen:
        sources = {"held_out": [data_source(text) for text in options.seen]}
        given = parse_settings(EvaluationData, data.model_dump() | sources, (), "--seen")
        seen = _load(given, encoder, options.prompts)
    else:
        seen = [] if subject.run is None else seen_prompts(subject.run, options.prompts, subject.config.seed)
    if not seen:
        why = "no prompts are known" if subject.run is None else "the run kept no trajectories"
        _report(
            f"{why} that the critic learned from: only held-out prompts are measured (--seen FILE adds "
            "others)"
        )
    return {HELD_OUT: held_out} | ({SEEN: seen} if seen else {})


def _refuse_trained(held_out: Sequence[Prompt], run_dir: Path) -> None:
    """Refuse training prompts in --data files; the run's own data was checked at training
    (`data.held_out_overlap`).
    """
    trained = trained_prompts(run_dir)
    known = [prompt.id for prompt in held_out if tuple(prompt.critic_token_ids.tolist()) in trained]
    if known:
        raise UserError(
            f"--data: the run trained on {len(known)} of these {len(held_out)} prompts, e.g. {known[0]}: on "
            "them a critic "
            "looks better than it is; give other prompts, or give these with --seen"
        )


def _load(data: EvaluationData, encoder: PromptEncoder, most: int) -> list[Prompt]:
    """Load the first `most` prompts of all sources of `data`, in equal shares."""
    bounded = data.model_copy(update={"max_prompt_tokens": data.max_prompt_tokens or sys.maxsize})
    share = max(1, most // len(data.held_out))
    return [prompt for prompts in load_held_out(bounded, encoder, share).values() for prompt in prompts]


def _measure(
    options: Options,
    subject: Subject,
    policy: Checkpoint,
    critic: ExportedCritic,
    sets: Mapping[str, Sequence[Prompt]],
) -> list[MeasuredSet] | None:
    """Measure the critic on each set; None when SIGTERM ended the sampling."""
    values = {
        name: critic.values([prompt.critic_token_ids for prompt in prompts]) for name, prompts in sets.items()
    }
    k, config = options.k, subject.config
    batches = [
        Batch(prompts, [k] * len(prompts), _reporter(name, k * len(prompts)))
        for name, prompts in sets.items()
    ]
    sampled = sample(policy, batches, config, report=_report)
    if sampled is None:
        return None
    rates = {
        name: solve_rates(graded, k, shaped=subject.shaped)
        for name, graded in zip(sets, sampled, strict=True)
    }
    for name, found in rates.items():
        _check_errors(name, sum(rate.errors for rate in found), k * len(found), config)
    return [
        measured(
            name, [v.value for v in values[name]], rates[name], k=k, seed=config.seed, bins=options.bins
        )
        for name in sets
    ]


def _check_errors(name: str, errors: int, total: int, config: EvaluationConfig) -> None:
    require_few_errors(name, errors, total, config.reward.max_error_rate)
    if errors == total:
        raise UserError(f"{name}: the verifier failed on every response: try it with `sppo-ray score`")


def _publish(options: Options, subject: Subject, found: Sequence[MeasuredSet]) -> None:
    out = options.out or RunDir(subject.run or Path()).calibration
    content = {
        "critic": str(subject.critic),
        "policy": str(subject.policy),
        "temperature": subject.config.rollout.temperature,
        "seed": subject.config.seed,
        "sets": {item.name: item.to_dict() for item in found},
    }
    print(table_text(found))
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(out / "calibration.json", text)
        title = (
            f"{subject.critic.resolve().parent.parent.name if subject.run else subject.critic.name}: "
            f"avg@{options.k}"
        )
        reliability_plot(out / RELIABILITY, {item.name: item.report for item in found}, title=title)
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written ({error.strerror or error}): choose another directory"
        ) from None
    print(f"written: {out / 'calibration.json'}, {out / RELIABILITY}")


def _reporter(name: str, total: int) -> Callable[[Sequence[Any]], None]:
    """Report about `_REPORTS` times how many of a set's responses are graded."""
    every = max(1, total // _REPORTS)

    def follow(graded: Sequence[Any]) -> None:
        if len(graded) % every == 0:
            _report(f"{name}: {len(graded)}/{total} responses graded")

    return follow


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
