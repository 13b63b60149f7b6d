"""Write the responses of an evaluation to one Parquet file, one row each, for people to read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sppo_ray.types import Prompt, Trajectory, Verdict

SCHEMA_VERSION = 2
_LOGPROBS = pa.list_(pa.field("element", pa.float64(), nullable=False))
_TOKENS = pa.list_(pa.field("element", pa.int32(), nullable=False))
SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("sample", pa.int64(), nullable=False),  # [0, k) within its prompt
        pa.field("prompt_text", pa.string(), nullable=False),  # chat template applied
        pa.field("ground_truth", pa.string(), nullable=False),
        pa.field("extra", pa.string(), nullable=False),  # JSON object
        pa.field("response_text", pa.string(), nullable=False),
        pa.field("answer", pa.string()),  # as the verifier reads it; null = none
        pa.field("reward", pa.float64()),  # null = the verifier could not score it
        pa.field("reason", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),  # `types.FinishReason`
        pa.field("prompt_ids", _TOKENS, nullable=False),
        pa.field("response_ids", _TOKENS, nullable=False),  # stop token included
        # nats, of the action tokens, after temperature
        pa.field("response_logprobs", _LOGPROBS, nullable=False),
        pa.field("worker", pa.string(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),  # generation
        # of an episode: tokens of action, observation, action, ...; else null
        pa.field("turn_lengths", _TOKENS),
    ],
    metadata={b"sppo_ray.response_schema": str(SCHEMA_VERSION).encode()},
)


def response_row(
    prompt: Prompt, sample: int, trajectory: Trajectory, text: str, verdict: Verdict
) -> dict[str, Any]:
    """Build one row of the file."""
    return {
        "source": prompt.source,
        "prompt_id": prompt.id,
        "sample": sample,
        "prompt_text": prompt.text,
        "ground_truth": prompt.ground_truth,
        "extra": json.dumps(dict(prompt.extra), default=str),  # dates and the like become text
        "response_text": text,
        "answer": verdict.answer,
        "reward": verdict.reward,
        "reason": verdict.reason,
        "finish_reason": trajectory.finish_reason,
        "prompt_ids": prompt.token_ids,
        "response_ids": trajectory.response_ids,
        "response_logprobs": trajectory.response_logprobs,
        "worker": trajectory.worker,
        "seconds": trajectory.seconds,
        "turn_lengths": None if trajectory.turns is None else trajectory.turns.lengths.reshape(-1),
    }


def write_responses(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the rows in order. Raises OSError when the write fails."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), path, compression="zstd")
