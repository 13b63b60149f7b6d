"""The model card of an exported policy: what it was made from, how, and what it reached.

It names no directory of this machine, because it is meant to be published.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sppo_ray.config import RunConfig
from sppo_ray.config.data import source_name
from sppo_ray.config.outside_yaml import write_yaml
from sppo_ray.formatting import format_fraction, format_seconds
from sppo_ray.models.hub import parse_name
from sppo_ray.redaction import redact
from sppo_ray.rundir.evaluations import read_evaluations
from sppo_ray.rundir.files import RunFile, json_object
from sppo_ray.rundir.job import JobRecord, read_job
from sppo_ray.rundir.layout import ENVIRONMENT, SUMMARY
from sppo_ray.rundir.summary import Summary


def policy_card(run_dir: Path, config: RunConfig, *, has_curve: bool) -> str:
    """Return README.md for the run's export/policy, whose folder holds curve.png if `has_curve`."""
    job = read_job(run_dir)
    summary = Summary.read(RunFile(run_dir, SUMMARY))
    base = base_of(config, job)
    lines = [
        *_head(config, base),
        f"# {config.name}",
        "",
        f"{base}, trained with {config.algorithm.type} on verifiable rewards by sppo-ray.",
        "",
        *(["![learning curve](curve.png)", ""] if has_curve else []),
        *evaluation_lines(read_evaluations(run_dir)),
        "## Training",
        "",
        *_training(config, base, summary),
        *made_by(run_dir, config, job),
    ]
    return redact("\n".join(lines) + "\n")


def base_of(config: RunConfig, job: JobRecord) -> str:
    """Return the name of the model that training started from, at the first of continued runs. Only
    a name on the hub has a slash.
    """
    if job.continues and job.continues.model:
        return job.continues.model
    model = config.learner.model
    return model if model.startswith("builtin:") or model in job.models else Path(model).name


def evaluation_lines(evaluations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The held-out scores before training and at the end, with their 95 % intervals."""
    yield from ("## Evaluation", "")
    if not evaluations:
        yield from ("The run made no held-out evaluation.", "")
        return
    yield "| step | data | prompts | responses a prompt | accuracy | 95 % interval | pass@k | mean tokens |"
    yield "|---|---|---|---|---|---|---|---|"
    for evaluation in dict.fromkeys((0, len(evaluations) - 1)):
        step = evaluations[evaluation]["step"]
        for scores in evaluations[evaluation]["by_source"]:
            yield f"| {step} | {' | '.join(_scores(scores))} |"
    yield from ("", "Intervals are bootstrapped over prompts.", "")


def made_by(run_dir: Path, config: RunConfig, job: JobRecord) -> Iterator[str]:
    """The command, the recipe and the versions of a run."""
    machine = json_object(RunFile(run_dir, ENVIRONMENT))
    words = ["sppo-ray", *map(_without_directory, job.entrypoint[1:])]
    yield from ("", "## Made with", "", "```", " ".join(words), "```", "")
    if job.continues:
        yield f"Continues the run {job.continues.name} after its step {job.continues.steps}."
        yield ""
    packages = machine.get("packages") or {}
    yield f"Python {machine.get('python')}; {', '.join(f'{n} {v}' for n, v in packages.items())}"
    if machine.get("commit"):
        yield f"(sppo-ray at commit {machine['commit'][:12]}{', modified' if machine['modified'] else ''})"
    devices = ", ".join(machine.get("gpus") or ()) or machine.get("cpu")
    yield from (f"on {devices}.", "", "<details><summary>recipe</summary>", "", "```yaml")
    yield write_yaml(_published(config.model_dump(mode="json"))).rstrip()
    yield from ("```", "", "</details>")


# ------------------------------------------------------------------------------------------- inside


def _head(config: RunConfig, base: str) -> Iterator[str]:
    on_hub = parse_name(base)
    yield from ("---", "library_name: transformers", "pipeline_tag: text-generation")
    if on_hub is not None:
        yield f"base_model: {on_hub.repository}"
    yield from (f"tags: [sppo-ray, reinforcement-learning, {config.algorithm.type}]", "---")


def _training(config: RunConfig, base: str, summary: Summary | None) -> Iterator[str]:
    reward = json.dumps(config.reward.function.model_dump(mode="json"), ensure_ascii=False)
    yield f"- **Base**: {base}"
    yield f"- **Data**: {', '.join(source_name(source) for source in config.data.train)}"
    yield f"- **Held out**: {', '.join(source_name(source) for source in config.data.held_out) or 'none'}"
    yield f"- **Reward**: `{reward}`"
    yield f"- **Algorithm**: {config.algorithm.type}, seed {config.seed}"
    yield f"- **Learning rate**: {config.learner.optimizer.lr:g} ({config.learner.optimizer.schedule})"
    if summary is not None:
        yield (
            f"- **Steps**: {summary.steps}, {summary.samples:,} samples, {summary.response_tokens:,} "
            f"generated tokens, {format_seconds(summary.seconds)} of training"
        )


def _scores(scores: Mapping[str, Any]) -> Iterator[str]:
    yield str(scores["source"])
    yield str(scores["num_prompts"])
    yield str(scores["k"])
    yield _number(scores["accuracy"])
    yield f"[{_number(scores['accuracy_low'])}, {_number(scores['accuracy_high'])}]"
    yield ", ".join(f"{k}: {_number(value)}" for k, value in scores["pass_at"].items())
    yield "-" if scores["response_length_mean"] is None else f"{scores['response_length_mean']:.0f}"


def _number(value: float | None) -> str:
    return format_fraction(float("nan") if value is None else value)


def _published(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _published(child) for key, child in node.items()}
    if isinstance(node, list):
        return [_published(child) for child in node]
    return _without_directory(node) if isinstance(node, str) else node


def _without_directory(text: str) -> str:
    """Cut an absolute path, also after an equals sign, to its last part."""
    name, equals, value = text.partition("=")
    if equals and value.startswith(("/", "~")):
        return f"{name}={Path(value).name}"
    return Path(text).name if text.startswith(("/", "~")) else text
