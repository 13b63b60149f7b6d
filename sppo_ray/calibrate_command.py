"""`sppo-ray calibrate`: a critic against the solve rates of its policy, on held-out prompts and on prompts it learned from.

run or (critic, policy) --> prompts of each set --+--> critic, by forwards here ----------> values       --+--> table, JSON,
                                                  '--> engines + verifier, k responses ---> solve rates  --'    plot
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo_ray.algorithms.shaping import Shaping, unshaped
from sppo_ray.config_loading import load_config, parse_settings
from sppo_ray.errors import UserError
from sppo_ray.eval_options import data_source, reward_function, tree_of
from sppo_ray.evaluation_config import EvaluationConfig, EvaluationData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sppo_ray.data.encoder import PromptEncoder
    from sppo_ray.models.exported_critic import ExportedCritic
    from sppo_ray.trainer.critic_measurement import MeasuredSet
    from sppo_ray.trainer.solve_rates import SolveRate
    from sppo_ray.types import Prompt


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured, and under which settings."""

    config: EvaluationConfig
    critic: Path
    policy: Path
    run: Path | None  # the run directory that both came from
    shaped: Shaping  # what the critic was told of a reward


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """The command's arguments; `commands` is argparse's collection of subcommands."""
    parser = commands.add_parser(
        "calibrate",
        help="measure a critic against its policy's solve rates; settings as --section.key=value",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run_dir", nargs="?", type=Path, metavar="RUN", help="a finished run: its export/critic, export/policy, settings and data"
    )
    parser.add_argument("--critic", type=Path, help="instead of a run: a critic's directory")
    parser.add_argument("--policy", help="instead of a run: the policy's directory, or builtin:NAME")
    parser.add_argument("--data", nargs="+", default=[], metavar="FILE", help="held-out prompts (default: the run's)")
    parser.add_argument("--seen", nargs="+", default=[], metavar="FILE", help="prompts it learned from (default: the run's log)")
    parser.add_argument("--reward", help="math, running-sum, package.module:function, ... (default: the run's, or the card's)")
    parser.add_argument("-k", type=int, default=8, help="responses a prompt (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=256, help="at most so many of each set (default: %(default)s)")
    parser.add_argument("--bins", type=int, default=10, help="bins of ECE and the reliability plot (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="directory of the results (default: RUN/calibration, else ./calibration)")
    return parser


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Measure, print the table, write calibration.json and reliability.png. Raises UserError and WorkerFailure."""
    _check(options)
    subject = _subject(options, overrides)

    from sppo_ray.models.exported_critic import ExportedCritic, check_value_head

    check_value_head(subject.critic, required=True)
    critic = ExportedCritic(subject.critic)
    sets = _prompt_sets(options, subject, critic)
    measured = _measure(options, subject, critic, sets)
    _publish(options, subject, measured)
    return 0


def _check(options: argparse.Namespace) -> None:
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


def _subject(options: argparse.Namespace, overrides: Sequence[str]) -> Subject:
    from sppo_ray.models.bundled import resolve_model
    from sppo_ray.models.exported_critic import critic_directory

    shaped: Shaping = unshaped
    if options.run_dir is None:
        critic, policy, tree = critic_directory(options.critic), resolve_model(options.policy), _tree_of_card(options.critic)
    elif not (options.run_dir / "config.yaml").is_file():
        raise UserError(
            f"run {options.run_dir}: no config.yaml in it, so it is no run directory: check the path, or use --critic"
        )
    else:
        critic, policy = critic_directory(options.run_dir), resolve_model(str(options.run_dir / "export" / "policy"))
        trained = load_config(str(options.run_dir / "config.yaml"))
        tree = tree_of(trained) | {"eval": {}}
        if trained.algorithm.overlong is not None:
            shaped = trained.shaped
            _report("values are compared with rewards after the run's overlong shaping, as the critic was told them")
    if options.data:
        tree["data"]["held_out"] = [data_source(text) for text in options.data]
    if not tree["data"]["held_out"]:
        raise UserError(f"run {options.run_dir}: has no data.held_out: give held-out prompts with --data FILE")
    if options.reward is not None:
        tree["reward"]["function"] = reward_function(options.reward)
    config = parse_settings(EvaluationConfig, tree | {"model": str(policy)}, overrides, "calibrate")
    return Subject(config, critic, policy, options.run_dir, shaped)


def _tree_of_card(critic: Path) -> dict[str, Any]:
    """Settings without a run: what the critic's card says of its prompts, its sampling and its reward."""
    from sppo_ray.models.exported_critic import critic_directory
    from sppo_ray.trainer.calibration_card import read_card

    card = read_card(critic_directory(critic))
    return {"data": {}, "rollout": {}, "reward": {}} | copy.deepcopy(dict(card["settings"]) if card else {})


def _prompt_sets(options: argparse.Namespace, subject: Subject, critic: ExportedCritic) -> dict[str, list[Prompt]]:
    """The prompts of each set by its name; a set without prompts is left out."""
    from sppo_ray.data.encoder import PromptEncoder
    from sppo_ray.models.tokenizers import load_tokenizer
    from sppo_ray.trainer.calibration import HELD_OUT, SEEN
    from sppo_ray.trainer.critic_measurement import seen_prompts

    data = subject.config.data
    encoder = PromptEncoder(load_tokenizer(subject.policy), critic.tokenizer, data)
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
        _report(f"{why} that the critic learned from: only held-out prompts are measured (--seen FILE adds others)")
    return {HELD_OUT: held_out} | ({SEEN: seen} if seen else {})


def _refuse_trained(held_out: Sequence[Prompt], run_dir: Path) -> None:
    """The run's own data was checked when it trained (`data.held_out_overlap`); files that come with --data were not."""
    from sppo_ray.trainer.critic_measurement import trained_prompts

    trained = trained_prompts(run_dir)
    known = [prompt.id for prompt in held_out if prompt.critic_token_ids in trained]
    if known:
        raise UserError(
            f"--data: the run trained on {len(known)} of these {len(held_out)} prompts, e.g. {known[0]}: on them a critic "
            "looks better than it is; give other prompts, or give these with --seen"
        )


def _load(data: EvaluationData, encoder: PromptEncoder, most: int) -> list[Prompt]:
    """The first `most` prompts of all sources of `data` together, in equal shares."""
    from sppo_ray.data.prompts import load_held_out

    bounded = data.model_copy(update={"max_prompt_tokens": data.max_prompt_tokens or sys.maxsize})
    share = max(1, most // len(data.held_out))
    return [prompt for prompts in load_held_out(bounded, encoder, share).values() for prompt in prompts]


def _measure(
    options: argparse.Namespace, subject: Subject, critic: ExportedCritic, sets: Mapping[str, Sequence[Prompt]]
) -> list[MeasuredSet]:
    from sppo_ray.trainer.critic_measurement import measured

    config = subject.config
    values = {name: critic.values([prompt.critic_token_ids for prompt in prompts]) for name, prompts in sets.items()}
    rates = _solve_rates(subject, sets, options.k)
    for name, found in rates.items():
        errors, total, limit = sum(rate.errors for rate in found), options.k * len(found), config.reward.max_error_rate
        if errors > limit * total or errors == total:
            raise UserError(
                f"{name}: the verifier failed on {errors} of {total} responses, more than reward.max_error_rate {limit} allows: "
                "try it with `sppo-ray score`, raise reward.deadline_s or reward.memory_mib, or the limit"
            )
    return [
        measured(name, [v.value for v in values[name]], rates[name], k=options.k, seed=config.seed, bins=options.bins)
        for name in sets
    ]


def _solve_rates(subject: Subject, sets: Mapping[str, Sequence[Prompt]], k: int) -> dict[str, list[SolveRate]]:
    """k responses to each prompt of each set, by the run's own kind of engines and verifier."""
    from sppo_ray.data.encoder import longest
    from sppo_ray.launch.cluster import cluster_with_room
    from sppo_ray.launch.materials import stop_token_ids_of
    from sppo_ray.models.tokenizers import load_tokenizer
    from sppo_ray.resources import serving_bundles_of

    tokenizer = load_tokenizer(subject.policy)
    stop_ids = stop_token_ids_of(subject.policy, tokenizer)
    context = max(longest(prompt) for prompts in sets.values() for prompt in prompts)
    data = subject.config.data.model_copy(update={"max_prompt_tokens": context})
    config = subject.config.model_copy(update={"data": data})
    with cluster_with_room(config, serving_bundles_of(config)) as device:
        return asyncio.run(_sample(config, subject, tokenizer, stop_ids, sets, k=k, device=device))


async def _sample(
    config: EvaluationConfig,
    subject: Subject,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: tuple[int, ...],
    sets: Mapping[str, Sequence[Prompt]],
    *,
    k: int,
    device: str,
) -> dict[str, list[SolveRate]]:
    from sppo_ray.launch.materials import decoder
    from sppo_ray.launch.workers import serving
    from sppo_ray.trainer.evaluator import Grader
    from sppo_ray.trainer.solve_rates import solve_rates
    from sppo_ray.types import SamplingSettings

    def on_event(kind: str, text: str) -> None:
        _report(f"{kind}: {text}")

    _report(f"starting {config.rollout.workers} engine(s) on {device}")
    async with serving(config, subject.policy, device=device, stop_token_ids=stop_ids, on_event=on_event) as (fleet, scorer):
        grader = Grader(
            fleet=fleet,
            scorer=scorer,
            decode=decoder(tokenizer),
            sampling=SamplingSettings(config.rollout.temperature, config.rollout.max_response_tokens, stop_ids),
            seed=config.seed,
            reward_range=config.reward.range,
        )
        return {
            name: await solve_rates(grader, prompts, k, _reporter(name), shaped=subject.shaped) for name, prompts in sets.items()
        }


def _publish(options: argparse.Namespace, subject: Subject, measured: Sequence[MeasuredSet]) -> None:
    from sppo_ray.trainer.critic_measurement import table_text
    from sppo_ray.trainer.jsonlines import write_atomically
    from sppo_ray.trainer.reliability_plot import reliability_plot

    out = options.out or (subject.run or Path()) / "calibration"
    content = {
        "critic": str(subject.critic),
        "policy": str(subject.policy),
        "temperature": subject.config.rollout.temperature,
        "seed": subject.config.seed,
        "sets": {item.name: item.to_dict() for item in measured},
    }
    print(table_text(measured))
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(out / "calibration.json", text)
        title = f"{subject.critic.resolve().parent.parent.name if subject.run else subject.critic.name}: avg@{options.k}"
        reliability_plot(out / "reliability.png", {item.name: item.report for item in measured}, title=title)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error}): choose another directory") from None
    print(f"written: {out / 'calibration.json'}, {out / 'reliability.png'}")


def _reporter(name: str) -> Callable[[int, int], None]:
    return lambda done, total: _report(f"{name}: {done}/{total} responses graded")


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
