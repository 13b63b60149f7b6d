"""What the policy trained on: one Arrow schema on the wire, on disk (a Parquet file a step) and over REST.

A row is one `TrainingSample` with everything that a replay of the step needs: the exact token ids of policy and
critic, and log-probs, reward, value and advantage in float64, so that nothing is rounded on the way.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sppo_ray.errors import DiskFull, UserError, is_disk_full
from sppo_ray.types import GreedyBaseline, Prompt, PromptValue, ScoredTrajectory, TrainingSample, Trajectory

FOLDER = "trajectories"
SCHEMA_VERSION = 3
_WITHOUT_MINIBATCH = "2"  # the version before, read all the same
_VERSION_KEY = b"sppo_ray.trajectory_schema"
_FILE = re.compile(r"step-(\d{6,})\.parquet")


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


SCHEMA = pa.schema(
    [
        _field("step", pa.int64()),
        pa.field("minibatch", pa.int64()),  # which update of the step, from 0; null in files of schema 2
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
        _field("response_logprobs", _list(pa.float64())),  # nats, of the sampled tokens, the engine's
        _field("finish_reason", pa.string()),  # stop | length
        _field("policy_version", pa.int64()),  # of the first token
        _field("policy_version_end", pa.int64()),  # of the last token
        _field("staleness", pa.int64()),  # learner version at the update - policy_version
        _field("worker", pa.string()),
        _field("seconds", pa.float64()),  # generation
        _field("reward", pa.float64()),  # the verifier's, in the reward function's range
        _field("reason", pa.string()),
        _field("reward_seconds", pa.float64()),
        _field("shaped_reward", pa.float64()),  # with overlong shaping; what advantage and critic were told
        pa.field("baseline_reward", pa.float64()),  # of the greedy response (ReMax), else null
        pa.field("baseline_tokens", pa.int64()),
        pa.field("value_logit", pa.float64()),  # the critic's four are null without a critic
        pa.field("value", pa.float64()),  # sigmoid(value_logit); ppo with critic_loss mse: value_logit itself
        pa.field("critic_version", pa.int64()),
        pa.field("surprise", pa.float64()),  # |reward - value|
        _field("advantage", pa.float64()),  # mean over the response's tokens
        _field("token_advantages", _list(pa.float64())),  # empty where all tokens share `advantage`
        _field("token_values", _list(pa.float64())),  # token critic, else empty
        _field("returns", _list(pa.float64())),  # token critic, else empty
    ],
    metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()},
)


def to_table(step: int, samples: Sequence[TrainingSample], learner_version: int, sizes: Sequence[int] = ()) -> pa.Table:
    """The samples of a step, a row each and in their order.

    `learner_version` is the policy's version before the update; `sizes` are those of the step's minibatches, () = only one.
    """
    minibatch = [number for number, size in enumerate(sizes or (len(samples),)) for _ in range(size)]
    rows = zip(samples, minibatch, strict=True)
    return pa.Table.from_pylist([_row(step, number, sample, learner_version) for sample, number in rows], schema=SCHEMA)


def to_minibatches(table: pa.Table) -> list[list[TrainingSample]]:
    """The step's minibatches as they were trained on. Raises UserError for a file of schema 2, which does not tell them apart."""
    found: dict[int, list[TrainingSample]] = {}
    for number, sample in zip(table["minibatch"].to_pylist(), to_samples(table), strict=True):
        if number is None:
            raise UserError("recorded by an older release (trajectory schema 2), which did not write down the minibatches")
        found.setdefault(number, []).append(sample)
    return [found[number] for number in sorted(found)]


def to_samples(table: pa.Table) -> list[TrainingSample]:
    """The inverse of `to_table`: equal samples, as long as their `extra` is made of what JSON can hold."""
    return [_sample(row) for row in table.to_pylist()]


def write_step(run_dir: Path, table: pa.Table) -> Path:
    """Write `trajectories/step-000123.parquet`, which appears whole or not at all. Replaces an earlier one.

    `table` holds one step, at least one row. Raises UserError when the disk refuses.
    """
    path = _path(run_dir, table["step"][0].as_py())
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            # Log-probs are float32 numbers in float64: split into byte planes, the lower planes compress to nothing.
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
        raise (DiskFull if is_disk_full(error) else UserError)(f"{path}: cannot be written ({what}): {remedy}") from None
    return path


def read_step(run_dir: Path, step: int, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a step, or some columns of it. Raises UserError when there is none, or it is damaged or of another schema."""
    path = _path(run_dir, step)
    if not path.is_file():
        there = steps(run_dir)
        known = f"recorded are {there[0]} to {there[-1]}" if there else "the run recorded none (logging.trajectories)"
        raise UserError(f"{path}: no trajectories of step {step}; {known}")
    return read_table(path, path, columns)


def read_table(path: Path, source: Path | BinaryIO, columns: Sequence[str] | None = None) -> pa.Table:
    """What `source`, the file at `path` or a handle on it, holds. Raises UserError when it is damaged or of another schema."""
    try:
        table = pq.ParquetFile(source).read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}): the file is damaged, restore it or take another step") from None
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if version == _WITHOUT_MINIBATCH and (columns is None or "minibatch" in columns):
        unknown = pa.nulls(len(table), pa.int64())
        return table.add_column(1, SCHEMA.field("minibatch"), unknown).replace_schema_metadata(SCHEMA.metadata)
    if version not in (str(SCHEMA_VERSION), _WITHOUT_MINIBATCH):
        raise UserError(f"{path}: has trajectory schema {version}, not {SCHEMA_VERSION}: read it with the release that wrote it")
    return table


def steps(run_dir: Path) -> list[int]:
    """The recorded steps, ascending."""
    return steps_among(path.name for path in (run_dir / FOLDER).glob("step-*.parquet"))


def steps_among(names: Iterable[str]) -> list[int]:
    """The steps whose files are called so, ascending."""
    return sorted(int(match.group(1)) for match in map(_FILE.fullmatch, names) if match)


def file_name(step: int) -> str:
    """Below the run directory."""
    return f"{FOLDER}/step-{step:06d}.parquet"


def _path(run_dir: Path, step: int) -> Path:
    return run_dir / file_name(step)


def _row(step: int, minibatch: int, sample: TrainingSample, learner_version: int) -> dict[str, Any]:
    scored = sample.scored
    prompt, trajectory, value, baseline = scored.prompt, scored.trajectory, scored.value, scored.baseline
    per_token = sample.advantage if isinstance(sample.advantage, tuple) else ()
    return {
        "step": step,
        "minibatch": minibatch,
        "request_id": trajectory.request_id,
        "prompt_id": prompt.id,
        "source": prompt.source,
        "prompt_text": prompt.text,
        "prompt_ids": prompt.token_ids,
        "critic_prompt_ids": prompt.critic_token_ids,
        "ground_truth": prompt.ground_truth,
        # Dates and the like become text: the log is for reading, and no verifier should be refused its types for it.
        "extra": json.dumps(dict(prompt.extra), default=str),
        "response_text": scored.response_text,
        "response_ids": trajectory.response_ids,
        "response_logprobs": trajectory.response_logprobs,
        "finish_reason": trajectory.finish_reason,
        "policy_version": trajectory.policy_version,
        "policy_version_end": trajectory.policy_version_end,
        "staleness": learner_version - trajectory.policy_version,
        "worker": trajectory.worker,
        "seconds": trajectory.seconds,
        "reward": scored.reward,
        "reason": scored.reason,
        "reward_seconds": scored.reward_seconds,
        "shaped_reward": sample.shaped_reward,
        "baseline_reward": None if baseline is None else baseline.reward,
        "baseline_tokens": None if baseline is None else baseline.response_tokens,
        "value_logit": None if value is None else value.value_logit,
        "value": None if value is None else value.value,
        "critic_version": None if value is None else value.critic_version,
        "surprise": None if value is None else abs(scored.reward - value.value),
        "advantage": statistics.fmean(per_token) if per_token else sample.advantage,
        "token_advantages": per_token,
        "token_values": sample.token_values,
        "returns": sample.returns,
    }


def _sample(row: dict[str, Any]) -> TrainingSample:
    prompt = Prompt(
        id=row["prompt_id"],
        source=row["source"],
        text=row["prompt_text"],
        token_ids=tuple(row["prompt_ids"]),
        critic_token_ids=tuple(row["critic_prompt_ids"]),
        ground_truth=row["ground_truth"],
        extra=json.loads(row["extra"]),
    )
    trajectory = Trajectory(
        request_id=row["request_id"],
        prompt_id=row["prompt_id"],
        response_ids=tuple(row["response_ids"]),
        response_logprobs=tuple(row["response_logprobs"]),
        finish_reason=row["finish_reason"],
        policy_version=row["policy_version"],
        policy_version_end=row["policy_version_end"],
        worker=row["worker"],
        seconds=row["seconds"],
    )
    value = None if row["value"] is None else PromptValue(row["value_logit"], row["value"], row["critic_version"])
    baseline = None if row["baseline_reward"] is None else GreedyBaseline(row["baseline_reward"], row["baseline_tokens"])
    scored = ScoredTrajectory(
        prompt, trajectory, row["response_text"], row["reward"], row["reason"], row["reward_seconds"], value, baseline
    )
    advantage = tuple(row["token_advantages"]) or row["advantage"]
    return TrainingSample(scored, advantage, row["shaped_reward"], tuple(row["token_values"]), tuple(row["returns"]))
