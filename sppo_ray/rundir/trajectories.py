"""The training samples of each step as Parquet; one Arrow schema for messages, disk and REST.

A row is one `TrainingSample` with everything that a replay of the step needs: the exact token ids
of policy and critic, and log-probs, reward, value and advantage in float64, without rounding.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sppo_ray.data.parquet_limits import LARGEST_TABLE, read_bounded
from sppo_ray.errors import DiskFull, UserError, is_disk_full
from sppo_ray.rundir.files import RunFile, names_in
from sppo_ray.rundir.layout import TRAJECTORIES, step_name, step_of
from sppo_ray.types import (
    NO_TOKENS,
    GreedyBaseline,
    Prompt,
    PromptHistory,
    PromptValue,
    RequestId,
    ScoredTrajectory,
    TrainingSample,
    Trajectory,
    Turns,
)

SCHEMA_VERSION = 6
_HISTORY = ("history_rate", "history_weight", "history_share")
_TEXTS = ("turn_texts", "turn_role")
_TURNS = ("turn_lengths", "turn_versions", "turn_rewards", "turn_reason", "turn_seconds", *_TEXTS)
_LACKS = {
    "2": ("minibatch", *_HISTORY, *_TURNS),
    "3": (*_HISTORY, *_TURNS),
    "4": _TURNS,
    "5": _TEXTS,
}
"""Earlier versions, still readable, with the columns that they lack."""
_VERSION_KEY = b"sppo_ray.trajectory_schema"
_ENDING = ".parquet"


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


SCHEMA = pa.schema(
    [
        _field("step", pa.int64()),
        # which update of the step, from 0; null in files of schema 2
        pa.field("minibatch", pa.int64()),
        _field("request_id", pa.string()),
        _field("prompt_id", pa.string()),
        _field("source", pa.string()),
        _field("prompt_text", pa.string()),  # chat template applied
        _field("prompt_ids", _list(pa.int32())),  # policy tokenizer
        _field("critic_prompt_ids", _list(pa.int32())),  # critic tokenizer
        _field("ground_truth", pa.string()),
        _field("extra", pa.string()),  # JSON object
        _field("response_text", pa.string()),
        _field("response_ids", _list(pa.int32())),  # stop token included
        # nats, of the action tokens, the engine's
        _field("response_logprobs", _list(pa.float64())),
        _field("finish_reason", pa.string()),  # `types.FinishReason`
        _field("policy_version", pa.int64()),  # of the first token
        _field("policy_version_end", pa.int64()),  # of the last token
        _field("staleness", pa.int64()),  # learner version at the update - policy_version
        _field("worker", pa.string()),
        _field("seconds", pa.float64()),  # generation
        _field("reward", pa.float64()),  # the verifier's, in the reward function's range
        _field("reason", pa.string()),
        _field("reward_seconds", pa.float64()),
        # with overlong shaping; used by advantage and critic
        _field("shaped_reward", pa.float64()),
        pa.field("baseline_reward", pa.float64()),  # of the greedy response (ReMax), else null
        pa.field("baseline_tokens", pa.int64()),
        # the tracker's three are null without a tracker
        pa.field("history_rate", pa.float64()),  # the prompt's success rate before the step
        pa.field("history_weight", pa.float64()),  # the number of rewards that it is worth
        pa.field("history_share", pa.float64()),  # its weight in the baseline
        pa.field("value_logit", pa.float64()),  # the critic's four are null without a critic
        # sigmoid(value_logit); ppo with critic_loss mse: value_logit itself
        pa.field("value", pa.float64()),
        pa.field("critic_version", pa.int64()),
        pa.field("surprise", pa.float64()),  # |reward - value|
        _field("advantage", pa.float64()),  # mean over the action tokens
        _field("token_advantages", _list(pa.float64())),  # empty where all tokens share `advantage`
        _field("token_values", _list(pa.float64())),  # token critic, else empty
        _field("returns", _list(pa.float64())),  # token critic, else empty
        # of an episode with K turns, else null: tokens of action, observation, action, ... [2 K]
        pa.field("turn_lengths", _list(pa.int32())),
        # policy version of each action's first and last token, [2 K]
        pa.field("turn_versions", _list(pa.int64())),
        pa.field("turn_rewards", _list(pa.float64())),  # the environment's parts, [K]
        pa.field("turn_reason", pa.string()),
        pa.field("turn_seconds", pa.float64()),  # in the environment
        # action, observation, action, ..., without special tokens and the text around it, [2 K - 1]
        pa.field("turn_texts", _list(pa.string())),
        pa.field("turn_role", pa.string()),  # of the observations
    ],
    metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()},
)


def to_table(
    step: int, samples: Sequence[TrainingSample], learner_version: int, sizes: Sequence[int] = ()
) -> pa.Table:
    """Build the table of a step's samples, one row each, in order.

    `learner_version` is the policy's version before the update; `sizes` are the sizes of the step's
    minibatches; () = one minibatch.
    """
    scored = [sample.scored for sample in samples]
    trajectories = [one.trajectory for one in scored]
    prompts = [one.prompt for one in scored]
    values, baselines = [one.value for one in scored], [one.baseline for one in scored]
    histories = [one.history for one in scored]
    per_token = [
        sample.advantage if isinstance(sample.advantage, np.ndarray) else NO_TOKENS for sample in samples
    ]
    columns = {
        "step": [step] * len(samples),
        "minibatch": [number for number, size in enumerate(sizes or (len(samples),)) for _ in range(size)],
        "request_id": [str(one.request_id) for one in trajectories],
        "prompt_id": [one.id for one in prompts],
        "source": [one.source for one in prompts],
        "prompt_text": [one.text for one in prompts],
        "prompt_ids": _lists([one.token_ids for one in prompts], np.int32),
        "critic_prompt_ids": _lists([one.critic_token_ids for one in prompts], np.int32),
        "ground_truth": [one.ground_truth for one in prompts],
        # Dates and the like become text: the log is for reading, and no verifier should be refused
        # its types for it.
        "extra": [json.dumps(dict(one.extra), default=str) for one in prompts],
        "response_text": [one.response_text for one in scored],
        "response_ids": _lists([one.response_ids for one in trajectories], np.int32),
        "response_logprobs": _lists([one.response_logprobs for one in trajectories], np.float64),
        "finish_reason": [one.finish_reason for one in trajectories],
        "policy_version": [one.policy_version for one in trajectories],
        "policy_version_end": [one.policy_version_end for one in trajectories],
        "staleness": [learner_version - one.policy_version for one in trajectories],
        "worker": [one.worker for one in trajectories],
        "seconds": [one.seconds for one in trajectories],
        "reward": [one.reward for one in scored],
        "reason": [one.reason for one in scored],
        "reward_seconds": [one.reward_seconds for one in scored],
        "shaped_reward": [sample.shaped_reward for sample in samples],
        "baseline_reward": [None if one is None else one.reward for one in baselines],
        "baseline_tokens": [None if one is None else one.response_tokens for one in baselines],
        "history_rate": [None if one is None else one.rate for one in histories],
        "history_weight": [None if one is None else one.weight for one in histories],
        "history_share": [None if one is None else one.share for one in histories],
        "value_logit": [None if one is None else one.value_logit for one in values],
        "value": [None if one is None else one.value for one in values],
        "critic_version": [None if one is None else one.critic_version for one in values],
        "surprise": [
            None if value is None else abs(one.reward - value.value)
            for one, value in zip(scored, values, strict=True)
        ],
        "advantage": [sample.mean_advantage for sample in samples],
        "token_advantages": _lists(per_token, np.float64),
        "token_values": _lists([sample.token_values for sample in samples], np.float64),
        "returns": _lists([sample.returns for sample in samples], np.float64),
    } | _turn_columns([one.turns for one in trajectories])
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, SCHEMA.field(name).type)
        for name, column in columns.items()
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _turn_columns(turns: Sequence[Turns | None]) -> dict[str, list[Any]]:
    return {
        "turn_lengths": [None if one is None else one.lengths.reshape(-1) for one in turns],
        "turn_versions": [None if one is None else one.versions.reshape(-1) for one in turns],
        "turn_rewards": [None if one is None else one.rewards for one in turns],
        "turn_reason": [None if one is None else one.reason for one in turns],
        "turn_seconds": [None if one is None else one.seconds for one in turns],
        "turn_texts": [None if one is None else one.texts for one in turns],
        "turn_role": [None if one is None else one.role for one in turns],
    }


def _lists(rows: Sequence[np.ndarray], kind: type) -> pa.Array:
    """A column of lists."""
    parts = [np.asarray(row, dtype=kind) for row in rows]
    offsets = np.concatenate(([0], np.cumsum([len(part) for part in parts]))).astype(np.int32)
    flat = np.concatenate(parts) if parts else np.empty(0, kind)
    values = pa.array(flat)
    return pa.ListArray.from_arrays(pa.array(offsets), values).cast(_list(values.type))


def to_minibatches(table: pa.Table) -> list[list[TrainingSample]]:
    """Return the step's minibatches as trained. Raises UserError for a file of schema 2, which does
    not record them.
    """
    found: dict[int, list[TrainingSample]] = {}
    for number, sample in zip(table["minibatch"].to_pylist(), to_samples(table), strict=True):
        if number is None:
            raise UserError(
                "recorded by an older release (trajectory schema 2), which did not write down the minibatches"
            )
        found.setdefault(number, []).append(sample)
    return [found[number] for number in sorted(found)]


def to_samples(table: pa.Table) -> list[TrainingSample]:
    """The inverse of `to_table`; samples are equal if their `extra` is valid JSON."""
    lists = [field.name for field in SCHEMA if pa.types.is_list(field.type) and not field.nullable]
    columns = {name: _arrays(table[name]) for name in lists}
    rows = table.drop_columns(lists).to_pylist()
    return [
        _sample(row | {name: arrays[number] for name, arrays in columns.items()})
        for number, row in enumerate(rows)
    ]


def _arrays(column: pa.ChunkedArray) -> list[np.ndarray]:
    """The inverse of `_lists`: one array, a view, per row."""
    ends = pc.list_value_length(column).to_numpy().cumsum()
    values = pc.list_flatten(column).to_numpy()
    return [values[start:end] for start, end in itertools.pairwise([0, *ends])]


def write_step(run_dir: Path, table: pa.Table) -> Path:
    """Write `trajectories/step-000123.parquet` atomically, replacing an earlier file. `table` holds
    one step with at least one row. Raises UserError when the write fails.
    """
    path = _path(run_dir, table["step"][0].as_py())
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            # Log-probs are float32 numbers in float64: split into byte planes, the lower planes
            # compress to nothing.
            pq.write_table(
                table,
                file,
                compression="zstd",
                use_dictionary=[field.name for field in SCHEMA if field.type == pa.string()],
                use_byte_stream_split=["response_logprobs.list.element"],
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        what = error.strerror or error
        remedy = "free the disk, or set logging.trajectories=false, then continue with --resume"
        raise (DiskFull if is_disk_full(error) else UserError)(
            f"{path}: cannot be written ({what}): {remedy}"
        ) from None
    return path


def read_step(run_dir: Path, step: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the table of a step, or some columns of it. Raises UserError when it is missing, damaged
    or of another schema.
    """
    path = _path(run_dir, step)
    if not path.is_file():
        there = steps(run_dir)
        known = (
            f"recorded are {there[0]} to {there[-1]}"
            if there
            else "the run recorded none (logging.trajectories)"
        )
        raise UserError(f"{path}: no trajectories of step {step}; {known}")
    return read_table(path, path, columns)


def read_table(
    path: Path, source: Path | BinaryIO, columns: Sequence[str] | None = None, *, most: int = LARGEST_TABLE
) -> pa.Table:
    """Read `source`, the file at `path` or a handle on it, in at most `most` bytes of memory.
    Raises UserError when it is larger, damaged or of another schema.
    """
    try:
        table = read_bounded(source, columns, most=most)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}): the file is damaged, restore it or take another step"
        ) from None
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if version not in (str(SCHEMA_VERSION), *_LACKS):
        raise UserError(
            f"{path}: has trajectory schema {version}, not {SCHEMA_VERSION}: read it with the release that "
            "wrote it"
        )
    for name in _LACKS.get(version, ()):
        if columns is None or name in columns:
            field = SCHEMA.field(name)
            place = SCHEMA.get_field_index(name) if columns is None else len(table.column_names)
            table = table.add_column(place, field, pa.nulls(len(table), field.type))
    return table.replace_schema_metadata(SCHEMA.metadata)


def read_served_step(run_dir: Path, step: int, columns: Sequence[str], *, most: int) -> pa.Table:
    """`read_step` for a server: without following links, in at most `most` bytes of memory. Raises
    UserError, and OSError when the file is missing.
    """
    file = RunFile(run_dir, _file_name(step))
    with file.open() as source:
        return read_table(run_dir / file.name, source, columns, most=most)


def steps(run_dir: Path) -> list[int]:
    """The recorded steps, ascending."""
    return _steps_among(path.name for path in (run_dir / TRAJECTORIES).glob("step-*"))


def served_steps(run_dir: Path) -> list[int]:
    """`steps` for a server: without following links."""
    return _steps_among(names_in(run_dir, TRAJECTORIES))


def _steps_among(names: Iterable[str]) -> list[int]:
    return sorted(step for name in names if (step := step_of(name, _ENDING)) is not None)


def _file_name(step: int) -> str:
    return f"{TRAJECTORIES}/{step_name(step)}{_ENDING}"


def _path(run_dir: Path, step: int) -> Path:
    return run_dir / _file_name(step)


def _sample(row: dict[str, Any]) -> TrainingSample:
    prompt = Prompt(
        id=row["prompt_id"],
        source=row["source"],
        text=row["prompt_text"],
        token_ids=row["prompt_ids"],
        critic_token_ids=row["critic_prompt_ids"],
        ground_truth=row["ground_truth"],
        extra=json.loads(row["extra"]),
    )
    trajectory = Trajectory(
        request_id=RequestId.parse(row["request_id"]),
        prompt_id=row["prompt_id"],
        response_ids=row["response_ids"],
        response_logprobs=row["response_logprobs"],
        finish_reason=row["finish_reason"],
        policy_version=row["policy_version"],
        policy_version_end=row["policy_version_end"],
        worker=row["worker"],
        seconds=row["seconds"],
        turns=_turns(row),
    )
    value = (
        None if row["value"] is None else PromptValue(row["value_logit"], row["value"], row["critic_version"])
    )
    baseline = (
        None
        if row["baseline_reward"] is None
        else GreedyBaseline(row["baseline_reward"], row["baseline_tokens"])
    )
    history = (
        None
        if row["history_rate"] is None
        else PromptHistory(row["history_rate"], row["history_weight"], row["history_share"])
    )
    scored = ScoredTrajectory(
        prompt,
        trajectory,
        row["response_text"],
        row["reward"],
        row["reason"],
        row["reward_seconds"],
        value,
        baseline,
        history,
    )
    advantage = row["token_advantages"] if len(row["token_advantages"]) else row["advantage"]
    return TrainingSample(scored, advantage, row["shaped_reward"], row["token_values"], row["returns"])


def _turns(row: dict[str, Any]) -> Turns | None:
    if row["turn_lengths"] is None:
        return None
    return Turns(
        lengths=np.array(row["turn_lengths"], dtype=np.int32).reshape(-1, 2),
        versions=np.array(row["turn_versions"], dtype=np.int64).reshape(-1, 2),
        rewards=np.array(row["turn_rewards"], dtype=np.float64),
        reason=row["turn_reason"],
        seconds=row["turn_seconds"],
        texts=tuple(row["turn_texts"] or ()),
        role=row["turn_role"] or "user",
    )
