"""The section `data`: sources of prompts, and the number of samples in a step and in an update."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, Discriminator, Field, SerializeAsAny, model_validator

from sppo_ray.config.plugin_types import declared_settings, or_plugin
from sppo_ray.settings import PositiveInt, Settings

ROW_FIELD = re.compile(r"\{(ground_truth|extra\.[^{}\s]+)\}")
"""A field of the row in critic_suffix."""


def _names_a_field(suffix: str) -> str:
    if not ROW_FIELD.search(suffix):
        raise ValueError(
            "names no field of the row: write {ground_truth} or {extra.NAME} in it, or use prompt_suffix for "
            "a text that the policy reads too"
        )
    return suffix


def answer_notice(suffix: str) -> str:
    """Return what a user of a critic with this critic_suffix has to know."""
    return (
        f"this critic reads each prompt with {suffix!r}: its values need data with these fields, and are "
        "no guide to prompts without them"
    )


CriticSuffix = Annotated[str, AfterValidator(_names_a_field)]


class SourceSettings(Settings):
    """A source of prompts."""

    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of a step's prompts, relative to the weights of the other training sources. null for
    all = in proportion to their rows. Every source has its own order and its own epochs.
    """


class RunningSumData(SourceSettings):
    """The package's own task: add labelled numbers step by step
    (`sppo_ray.environments.running_sum`).
    """

    type: Literal["running-sum"] = "running-sum"
    name: str = "running-sum"
    """In ids and metrics."""
    size: PositiveInt = 100_000
    """Number of prompts. Prompt i is generated from (seed, i); short prompts repeat."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds from 1,000,000 on draw prompts that smaller ones never draw."""
    max_operands: Annotated[int, Field(ge=2, le=26)] = 8
    """A prompt has two to this many numbers."""


class RegisterMachineData(SourceSettings):
    """Traces of a register machine, 317 to 599 tokens long
    (`sppo_ray.environments.register_machine`); the reward function is running-sum.
    """

    type: Literal["register-machine"] = "register-machine"
    name: str = "register-machine"
    """In ids and metrics."""
    size: PositiveInt = 100_000
    """Number of prompts. Prompt i is generated from (seed, i)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds from 1,000,000 on draw prompts that smaller ones never draw."""
    max_rounds: Annotated[int, Field(ge=1, le=9)] = 9
    """A prompt has this many rounds, or up to three less."""


class GuessNumberData(SourceSettings):
    """Numbers to find (`sppo_ray.environments.guess_number`), for the environment of that name."""

    type: Literal["guess-number"] = "guess-number"
    name: str = "guess-number"
    """In ids and metrics."""
    size: PositiveInt = 100_000
    """Number of prompts. Prompt i is generated from (seed, i)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed gives other ranges and numbers."""


class ProductData(SourceSettings):
    """Products of two numbers (`sppo_ray.environments.product`), for the environment tools with a
    calculator.
    """

    type: Literal["product"] = "product"
    name: str = "product"
    """In ids and metrics."""
    size: PositiveInt = 100_000
    """Number of prompts. Prompt i is generated from (seed, i)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds from 1,000,000 on draw prompts that smaller ones never draw."""


class VowelsData(SourceSettings):
    """The package's task of preferences: write vowels, neither too few nor too many
    (`sppo_ray.environments.vowels`).
    """

    type: Literal["vowels"] = "vowels"
    name: str = "vowels"
    """In ids and metrics."""
    size: PositiveInt = 100_000
    """Number of prompts. Prompt i is generated from (seed, i)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds from 1,000,000 on draw prompts that smaller ones never draw."""


class EnvironmentData(SourceSettings):
    """Numbered rows without a text, for an environment of your own that makes the first messages
    itself (`reset`). Its row has the number and the seed as `extra["index"]` and `extra["seed"]`.
    """

    type: Literal["environment"] = "environment"
    name: str = "environment"
    """In ids and metrics."""
    size: PositiveInt = 100_000
    """Number of rows, each with a seed of its own for `reset`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed gives other rows."""


class ParquetData(SourceSettings):
    """Parquet in verl's format: data_source, prompt (chat messages or a string),
    reward_model.ground_truth, extra_info. Other columns are named by the keys.
    """

    type: Literal["parquet"] = "parquet"
    name: str | None = None
    """Overrides `data_source` in metrics when given."""
    path: str
    """A file, a directory of files, or a glob."""
    prompt_key: str = "prompt"
    """Column of the prompt."""
    ground_truth_key: str = "reward_model.ground_truth"
    """A dot separates a struct from its field."""
    extra_columns: tuple[str, ...] | None = None
    """Other columns that the reward gets, beside the fields of `extra_info`."""


class JsonlData(SourceSettings):
    """One JSON object a line, or one array of objects in a .json file: `prompt` (a string or chat
    messages) and `ground_truth` (keys configurable). The reward gets all other keys of a row, and
    those of its `extra_info`, as `extra`.
    """

    type: Literal["jsonl"] = "jsonl"
    name: str | None = None
    """In ids and metrics; null = the name of the file."""
    path: str
    """A file, a directory of files, or a glob."""
    prompt_key: str = "prompt"
    """Key of the prompt."""
    ground_truth_key: str = "ground_truth"
    """Key of the right answer."""


class HFDiskData(SourceSettings):
    """A Hugging Face dataset written by `save_to_disk`."""

    type: Literal["hf-disk"] = "hf-disk"
    name: str | None = None
    """In ids and metrics; null = the name of the directory."""
    path: str
    """The directory."""
    split: str | None = None
    """Which split of a DatasetDict; null = the only one, or for a single Dataset."""
    prompt_key: str = "prompt"
    """Column of the prompt."""
    ground_truth_key: str = "ground_truth"
    """Column of the right answer."""
    extra_columns: tuple[str, ...] | None = None
    """Other columns that the reward gets, beside the fields of `extra_info`."""


class HFData(SourceSettings):
    """A dataset of the Hugging Face hub, e.g. openai/gsm8k. The driver downloads it into the cache
    of the package datasets, or reads it from there offline (HF_HUB_OFFLINE=1).
    """

    type: Literal["hf"] = "hf"
    name: str | None = None
    """In ids and metrics; null = the dataset's."""
    dataset: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    """owner/name on the hub."""
    subset: str | None = None
    """One of its configurations, e.g. main; null = the only one."""
    split: str = "train"
    """Which split, e.g. train or test."""
    revision: str | None = None
    """A branch, tag or commit; give a commit to read the same rows for ever."""
    prompt_key: str = "prompt"
    """Column of the prompt."""
    ground_truth_key: str = "ground_truth"
    """Column of the right answer."""
    extra_columns: tuple[str, ...] | None = None
    """Other columns that the reward gets, beside the fields of `extra_info`."""


class ReasoningGymData(SourceSettings):
    """A procedural task of the reasoning-gym package, scored by its own verifier."""

    type: Literal["reasoning-gym"] = "reasoning-gym"
    task: str
    """A dataset of reasoning-gym, e.g. basic_arithmetic."""
    size: PositiveInt = 10_000
    """Number of prompts."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed gives other prompts."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    """Passed to `reasoning_gym.create_dataset`."""

    @property
    def name(self) -> str:
        return f"reasoning-gym/{self.task}"


_Own = Union[
    RunningSumData,
    RegisterMachineData,
    VowelsData,
    GuessNumberData,
    ProductData,
    EnvironmentData,
    ParquetData,
    JsonlData,
    HFDiskData,
    HFData,
    ReasoningGymData,
]
DataSource = Annotated[
    _Own,
    Discriminator("type"),
    SerializeAsAny(),
    or_plugin("data", _Own, partial(declared_settings, "data", base=SourceSettings)),
]


def source_name(source: DataSource) -> str:
    """Return the name of a source in ids and metrics, without the directories of this machine."""
    if isinstance(source, (ParquetData, JsonlData, HFDiskData)):
        return source.name or Path(source.path).stem
    if isinstance(source, HFData):
        return source.name or source.dataset
    procedural = (
        RunningSumData,
        RegisterMachineData,
        VowelsData,
        GuessNumberData,
        ProductData,
        EnvironmentData,
        ReasoningGymData,
    )
    return source.name if isinstance(source, procedural) else source.type


class CurriculumSettings(Settings):
    """Prefer prompts of uncertain outcome: draw without replacement, in proportion to
    (4 V (1 - V)) ** sharpness. V is the prompt critic's value, or with spo the tracker's rate.
    """

    candidates: Annotated[int, Field(ge=2)] = 4
    """Prompts to choose from for each prompt that is trained on."""
    sharpness: Annotated[float, Field(gt=0)] = 1.0
    """The higher, the more do draws concentrate on prompts of uncertain outcome."""
    floor: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Smallest weight of a prompt. SPO has sharpness 0.5 and adds 0.1."""


class DataSettings(Settings):
    train: tuple[DataSource, ...]
    held_out: tuple[DataSource, ...] = ()
    """Evaluation sets; see held_out_overlap."""
    held_out_overlap: Literal["refuse", "drop", "allow"] = "refuse"
    """When a training prompt from a file is also held out: refuse = stop and name it; drop = leave
    it out of training and count it; allow = train on it. Procedural sources always leave it out.
    """
    prompts_per_step: PositiveInt = 256
    """Prompts of a step, each with samples_per_prompt responses."""
    samples_per_prompt: PositiveInt = 1
    """N. Group methods (grpo and rloo) need 2 or more, as the baseline is the other samples; one is
    enough for all others.
    """
    minibatch_size: PositiveInt = 64
    """Samples per optimizer step, over all learner ranks."""
    max_prompt_tokens: PositiveInt = 1024
    """Longest prompt, as the policy and a prompt critic count it; see overlong_prompts."""
    overlong_prompts: Literal["refuse", "drop"] = "refuse"
    """When a prompt is longer than max_prompt_tokens: refuse = stop and name it; drop = leave it
    out and count it. Prompts are never cut.
    """
    shuffle: bool = True
    """Read the rows in a new random order in each epoch; false = in the order of the file."""
    curriculum: CurriculumSettings | None = None
    """Chooses the prompts of a step; null = all, in order. Needs a prompt critic or a tracker
    (sppo, spo).
    """
    system_prompt: str | None = None
    """Added before messages that have no system message."""
    prompt_suffix: str | None = None
    """Appended to the last user message, e.g. how to mark the final answer."""
    critic_suffix: CriticSuffix | None = None
    """Appended to the last user message for the prompt critic alone, with {ground_truth} and
    {extra.NAME} replaced by the row's, e.g. " Reference answer: {ground_truth}". null = the critic
    reads what the policy reads.
    """

    @property
    def samples_per_step(self) -> int:
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def minibatches_per_step(self) -> int:
        return self.samples_per_step // self.minibatch_size

    @model_validator(mode="after")
    def _batches_divide(self) -> DataSettings:
        if not self.train:
            raise ValueError("train names no data source: give at least one")
        weighted = [source.weight is not None for source in self.train]
        if any(weighted) and not all(weighted):
            raise ValueError(
                f"train.{weighted.index(False)} has no weight, and others have: give all of them one, or none"
            )
        if self.samples_per_step % self.minibatch_size:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} does not divide the {self.samples_per_step} samples "
                "of a step "
                "(prompts_per_step x samples_per_prompt): nearest that do are "
                f"{_near_divisors(self.samples_per_step, self.minibatch_size)}"
            )
        return self


def _near_divisors(total: int, near: int) -> str:
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    return ", ".join(str(d) for d in sorted(sorted(divisors, key=lambda d: abs(d - near))[:3]))
