"""The calibration card of an exported critic: README.md for people and calibration.json for
programs.

It names the policy whose success the critic predicts, the prompt format that it expects, and its
figures on held-out prompts. `sppo-ray map` and `sppo-ray calibrate` use this prompt format; a warm
start with another format is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sppo_ray.config import DataSettings, RunConfig
from sppo_ray.config.data import source_name
from sppo_ray.data.encoder import ToolList
from sppo_ray.errors import UserError
from sppo_ray.evaluation.calibration import CalibrationReport
from sppo_ray.evaluation.last import LastEvaluation, last_evaluation
from sppo_ray.formatting import format_fraction
from sppo_ray.redaction import redact
from sppo_ray.rundir.job import read_job
from sppo_ray.rundir.jsonlines import finite_json, write_atomically
from sppo_ray.rundir.layout import RunDir

CARD = "calibration.json"
_FORMAT = 1
_FIGURES = {
    "brier": "Brier score (mean squared error)",
    "brier_constant": "the same for the best constant",
    "log_loss": "log-loss (nats)",
    "log_loss_constant": "the same for the best constant",
    "ece": "expected calibration error",
    "auroc": "AUROC",
    "pearson": "Pearson",
    "spearman": "Spearman",
}


def write_card(
    directory: Path,
    config: RunConfig,
    *,
    step: int,
    policy_version: int,
    critic_version: int,
    chat_template: str | None,
    evaluation: LastEvaluation | None,
    tools: ToolList | None = None,
) -> None:
    """Write README.md and calibration.json into the exported critic's `directory`. `chat_template`
    is the exported tokenizer's, `evaluation` the run's last one (None: it never evaluated a
    critic), `tools` what its prompts say of an environment's tools.
    """
    card = {
        "format": _FORMAT,
        "predicts": "expected reward in [0, 1] of one response of the policy to the prompt",
        "run": {"name": config.name, "algorithm": config.algorithm.type, "seed": config.seed},
        "policy": {
            "model": _model_name(config.learner.model),
            "step": step,
            "policy_version": policy_version,
        },
        "critic": {"model": _model_name(config.critic.model), "critic_version": critic_version},
        "sources": {
            "train": [source_name(source) for source in config.data.train],
            "held_out": [source_name(source) for source in config.data.held_out],
        },
        # The settings needed to write prompts for the critic and to measure it again.
        "settings": {
            "data": {
                "system_prompt": config.data.system_prompt,
                "prompt_suffix": config.data.prompt_suffix,
                "critic_suffix": config.data.critic_suffix,
                "max_prompt_tokens": config.data.max_prompt_tokens,
            },
            "rollout": {
                "temperature": config.rollout.temperature,
                "max_response_tokens": config.rollout.max_response_tokens,
                "dtype": config.rollout.dtype,
            },
            "reward": {"function": config.reward.function.model_dump(mode="json")},
            **_environment(config),
        },
        "chat_template_sha256": _digest(chat_template),
        "tools": tools,
        "evaluation": None
        if evaluation is None
        else {"step": evaluation.step, "responses_a_prompt": evaluation.k},
        "held_out": None if evaluation is None else evaluation.held_out.to_dict(),
        "seen": None
        if evaluation is None or not evaluation.trained_on.count
        else evaluation.trained_on.to_dict(),
    }
    write_atomically(
        directory / CARD, json.dumps(finite_json(card), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
    write_atomically(directory / "README.md", "\n".join(_readme(card)) + "\n")


def write_card_of_run(
    run_dir: Path,
    config: RunConfig,
    *,
    step: int,
    policy_version: int,
    critic_version: int,
    tools: ToolList | None,
) -> None:
    """Write the card of a run's export/critic, with the figures of its last evaluation."""
    from sppo_ray.models.tokenizers import load_tokenizer

    directory = RunDir(run_dir).exported_critic
    write_card(
        directory,
        config,
        step=step,
        policy_version=policy_version,
        critic_version=critic_version,
        chat_template=load_tokenizer(directory).chat_template,
        evaluation=last_evaluation(run_dir),
        tools=tools,
    )


def publish_card(run_dir: Path, config: RunConfig) -> None:
    """Add the run's command, recipe and versions to the exported critic's README.md."""
    from sppo_ray.evaluation.policy_card import made_by

    path = RunDir(run_dir).exported_critic / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# Critic of {config.name}\n"
    text = text.partition("\n## Made with\n")[0].rstrip()
    lines = [text, *made_by(run_dir, config, read_job(run_dir))]
    write_atomically(path, redact("\n".join(lines) + "\n"))


def read_card(directory: Path) -> Mapping[str, Any] | None:
    """Read calibration.json of an exported critic; None when it has none. Raises UserError when it
    cannot be read.
    """
    path = directory / CARD
    if not path.is_file():
        return None
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] == _FORMAT and card["settings"]["data"].keys() >= {
            "system_prompt",
            "prompt_suffix",
        }:
            return card
        what = f"format {card['format']!r} instead of {_FORMAT}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
    raise UserError(
        f"{path}: is not a calibration card ({what}): export the critic again, or remove the file"
    )


def settings_of_card(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the card's settings (sections data, rollout, reward and, if the run had one,
    environment); empty without a card. Raises UserError as `read_card`.
    """
    card = read_card(directory)
    return {"data": {}, "rollout": {}, "reward": {}} | (dict(card["settings"]) if card else {})


def tools_of_card(directory: Path) -> ToolList | None:
    """Return what the prompts said of an environment's tools; None without a card, and for the card
    of an older release. Raises UserError as `read_card`.
    """
    card = read_card(directory)
    return card.get("tools") if card else None


def check_warm_start(
    directory: Path, data: DataSettings, chat_template: str | None, tools: ToolList | None = None
) -> None:
    """Refuse to start from a critic with another prompt format, because its values would not apply
    to the run's prompts. Without a card it checks nothing.

    `chat_template` is that of the critic's tokenizer, `tools` what the run's prompts say of an
    environment's tools. Raises UserError naming the setting.
    """
    card = read_card(directory)
    if card is None:
        return
    for name in ("system_prompt", "prompt_suffix", "critic_suffix"):
        learned, now = card["settings"]["data"].get(name), getattr(data, name)  # older: no critic_suffix
        if learned != now:
            raise UserError(
                f"critic.model {directory}: it learned on prompts with data.{name} {_shown(learned)}, this "
                "run has "
                f"{_shown(now)}: set data.{name} to that, or remove its {CARD} to start from its weights all "
                "the same"
            )
    if card.get("tools", tools) != tools:  # an older card does not say
        raise UserError(
            f"critic.model {directory}: it learned on prompts that describe other tools than "
            "environment.tools: choose the same tools and format, or remove its "
            f"{CARD} to start from its weights all the same"
        )
    if card["chat_template_sha256"] != _digest(chat_template):
        raise UserError(
            f"critic.model {directory}: its chat template is not the one that it learned with: export it "
            "again, or remove its "
            f"{CARD} to start from its weights all the same"
        )


# ------------------------------------------------------------------------------------------- inside


def _environment(config: RunConfig) -> dict[str, Any]:
    given = config.environment
    return {} if given is None else {"environment": given.model_dump(mode="json")}


def _shown(text: str | None) -> str:
    return "null" if text is None else repr(text)


def _digest(chat_template: str | None) -> str | None:
    return None if chat_template is None else hashlib.sha256(chat_template.encode()).hexdigest()


def _model_name(model: str) -> str:
    """Return the name without the directories of this machine."""
    return model if model.startswith("builtin:") else Path(model).name


def _readme(card: Mapping[str, Any]) -> Iterator[str]:
    policy, critic, sampling = card["policy"], card["critic"], card["settings"]["rollout"]
    yield from (
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        "tags: [sppo, critic, calibration]",
        "---",
    )
    yield f"# Critic of {card['run']['name']}: will the policy solve this prompt?"
    yield ""
    yield (
        f"Reads a prompt and predicts the {card['predicts']} (for rewards 0 and 1: the probability that it "
        "solves it). A "
        f"Transformers sequence classifier with one label; it sees the prompt {_reads(card)}, so a "
        "prediction costs one short forward and no generation."
    )
    yield ""
    yield (
        f"- **Policy**: {policy['model']} after step {policy['step']} (policy version "
        f"{policy['policy_version']}), sampled at"
    )
    yield (
        f"  temperature {sampling['temperature']:g} with at most {sampling['max_response_tokens']} response "
        "tokens"
    )
    yield f"- **Critic**: from {critic['model']}, {critic['critic_version']} updates of binary cross-entropy"
    yield f"- **Reward**: `{json.dumps(card['settings']['reward']['function'], ensure_ascii=False)}`"
    yield f"- **Trained on**: {', '.join(card['sources']['train'])}"
    yield f"- **Run**: algorithm {card['run']['algorithm']}, seed {card['run']['seed']}"
    yield from ("", "## How to read it", "")
    yield from _usage(card)
    yield from ("", "## Calibration", "")
    yield from _calibration(card)
    yield from ("", "## Caveats", "")
    yield from _caveats(card)


def _reads(card: Mapping[str, Any]) -> str:
    suffix = card["settings"]["data"]["critic_suffix"]
    return "only" if suffix is None else "and its reference answer"


def _usage(card: Mapping[str, Any]) -> Iterator[str]:
    data, templated = card["settings"]["data"], card["chat_template_sha256"] is not None
    yield "The value is the sigmoid of the one logit at the last prompt token."
    if data["system_prompt"]:
        yield f"In front of the prompt belongs the system message {_shown(data['system_prompt'])}."
    if data["prompt_suffix"]:
        yield f"The last user message ends in {_shown(data['prompt_suffix'])}."
    if card["tools"]:
        yield (
            "The system message ends in the description of the tools, `tools` of calibration.json."
            if isinstance(card["tools"], str)
            else "The chat template is given the tools of calibration.json."
        )
    if data["critic_suffix"]:
        yield (
            f"**It needs the reference answer**: {_shown(data['critic_suffix'])} follows the last user "
            "message, with the row's fields in place of the names in braces. Without them its values mean "
            "nothing."
        )
    yield ""
    yield "```python"
    listed = templated and isinstance(card["tools"], list)
    yield from ("import json", "") if listed else ()
    yield "from transformers import AutoModelForSequenceClassification, AutoTokenizer"
    yield ""
    yield 'critic = AutoModelForSequenceClassification.from_pretrained(".")'
    yield 'tokenizer = AutoTokenizer.from_pretrained(".")'
    if templated:
        yield 'messages = [{"role": "user", "content": "..."}]'
        given = ", tools=tools" if listed else ""
        if listed:
            yield f"tools = json.load(open('{CARD}'))['tools']"
        call = f"messages, tokenize=False, add_generation_prompt=True{given}"
        yield f"text = tokenizer.apply_chat_template({call})"
        yield "# The template writes the special tokens itself; they must not come twice."
        yield 'batch = tokenizer([text], add_special_tokens=False, padding=True, return_tensors="pt")'
    else:
        yield 'text = "..."  # the messages\' plain text, two line breaks between them'
        yield 'batch = tokenizer([text], padding=True, return_tensors="pt")'
    yield "value = critic(**batch).logits.squeeze(-1).sigmoid()  # [1], in (0, 1)"
    yield "```"
    yield ""
    call = "(text, add_special_tokens=False)" if templated else "(text)"
    yield (
        f'`pipeline("text-classification", "."){call}` gives the same number as its score; `sppo-ray map DIR '
        "--data FILE "
        "--out MAP.parquet` values a whole data set; `critic.model: DIR` starts another run from it."
    )


def _calibration(card: Mapping[str, Any]) -> Iterator[str]:
    if card["held_out"] is None:
        yield "Not measured: the run made no held-out evaluation. `sppo-ray calibrate RUN` measures it."
        return
    evaluation = card["evaluation"]
    k = evaluation["responses_a_prompt"]
    reports = {"held-out prompts": CalibrationReport.from_dict(card["held_out"])}
    if card["seen"] is not None:
        reports["training samples"] = CalibrationReport.from_dict(card["seen"])
    yield (
        f"At step {evaluation['step']}: on held-out prompts ({', '.join(card['sources']['held_out'])}) "
        "against the mean reward "
        f"of {k} response{'s' if k > 1 else ''} each; on the samples trained on since the evaluation before, "
        "values "
        "as they were before the update, against the one reward of each."
    )
    yield ""
    yield f"| figure | {' | '.join(reports)} |"
    yield "|---|" + "---|" * len(reports)
    yield f"| count | {' | '.join(str(report.count) for report in reports.values())} |"
    for name, label in _FIGURES.items():
        yield f"| {label} | {' | '.join(_number(report.figures[name]) for report in reports.values())} |"
    yield from (
        "",
        "Reliability on held-out prompts:",
        "",
        "| value | prompts | mean value | mean reward |",
        "|---|---|---|---|",
    )
    for row in reports["held-out prompts"].bins:
        means = f"{format_fraction(row.value_mean)} | {format_fraction(row.reward_mean)}"
        yield f"| {row.low:.1f} - {row.high:.1f} | {row.count} | {means} |"


def _caveats(card: Mapping[str, Any]) -> Iterator[str]:
    longest = card["settings"]["data"]["max_prompt_tokens"]
    yield (
        "- It predicts this policy at this step and this temperature. Another policy, or this one trained "
        "further, solves other "
        "prompts."
    )
    yield (
        "- Its figures hold for prompts like those above, written in the same way; elsewhere it may be sure "
        "and wrong."
    )
    if card["settings"]["data"]["critic_suffix"] is None:
        sees = "never sees an answer: it judges prompts, not responses"
    else:
        sees = "sees the reference answer but no response: it cannot value prompts whose answer is unknown"
    yield f"- It learned on prompts of at most {longest} tokens, and {sees}."
    yield (
        "- A mean of few rewards is a noisy solve rate: Brier score, log-loss and correlations would look "
        "better against the "
        "true one, and the calibration error of small bins is mostly noise."
    )


def _number(figure: float) -> str:
    return "undefined" if figure != figure else f"{figure:.3f}"
