"""The solvability map: a Parquet file with the critic's value of every prompt of a data set.

    sources --blocks of rows--> encode (critic's template and tokenizer) --> forward
        --> row group      (no engine, no Ray)

Only one block is in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sppo_ray.data.encoder import PromptEncoder
from sppo_ray.data.sources import Concatenation
from sppo_ray.errors import UserError
from sppo_ray.models.exported_critic import ExportedCritic
from sppo_ray.types import Prompt, PromptValue

BLOCK_ROWS = 1024
HISTOGRAM_BINS = 20
_BAR = 48  # characters

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # "<source>/<row>"
        pa.field("source", pa.string(), nullable=False),
        # as the critic reads it: its chat template applied, without data.critic_suffix
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),  # of the critic's tokenizer
        pa.field(
            "value", pa.float64(), nullable=False
        ),  # sigmoid(value_logit): probability that the policy solves it; mse: value_logit
        pa.field("value_logit", pa.float64(), nullable=False),
    ]
)

Progress = Callable[[int, int], None]  # prompts done, prompts in all


@dataclass(frozen=True, slots=True)
class MapSummary:
    """Number of prompts and their values in a map."""

    values: np.ndarray  # [prompts] float64, in the order of the file
    longest_tokens: int

    @property
    def count(self) -> int:
        return self.values.size


def write_map(
    path: Path, rows: Concatenation, encoder: PromptEncoder, critic: ExportedCritic, progress: Progress
) -> MapSummary:
    """Compute the value of every prompt of `rows` and write `path` atomically, replacing an earlier
    file.

    Raises UserError for a prompt that the critic cannot read (longer than its positions, unknown to
    its tokenizer) and when the file cannot be written.
    """
    values: list[float] = []
    longest = 0
    with _parquet(path) as file:
        for start in range(0, len(rows), BLOCK_ROWS):
            prompts = encoder.encode(rows.examples(range(start, min(start + BLOCK_ROWS, len(rows)))))
            _require_readable(prompts, critic)
            block = critic.values([prompt.critic_token_ids for prompt in prompts])
            file.write_table(_table(prompts, block))
            values += [value.value for value in block]
            longest = max(longest, *(len(prompt.critic_token_ids) for prompt in prompts))
            progress(len(values), len(rows))
    return MapSummary(np.array(values), longest)


def histogram_text(values: Sequence[float] | np.ndarray, *, bins: int = HISTOGRAM_BINS) -> str:
    """Draw a histogram of the values with equal bins on [0, 1], one line each, and a last line with
    a summary.
    """
    value = np.asarray(values, dtype=np.float64)
    # A critic that learned by squared error has no sigmoid: the outermost bins take what lies
    # outside [0, 1].
    counts = np.bincount(np.clip(np.floor(value * bins).astype(np.int64), 0, bins - 1), minlength=bins)
    width = len(f"{counts.max():,}")
    lines = [
        f"{b / bins:.2f} - {(b + 1) / bins:.2f}  {count:>{width},}  "
        f"{'█' * int(round(_BAR * count / counts.max()))}".rstrip()
        for b, count in enumerate(counts.tolist())
    ]
    shares = [np.mean(value < 0.1), np.mean((value >= 0.1) & (value <= 0.9)), np.mean(value > 0.9)]
    return "\n".join(
        [
            *lines,
            f"mean value {value.mean():.3f}; out of reach (< 0.1) {shares[0]:.1%}, between {shares[1]:.1%}, "
            "solved (> 0.9) "
            f"{shares[2]:.1%}; mean value x (1 - value) {np.mean(value * (1 - value)):.3f} of 0.25",
        ]
    )


# ------------------------------------------------------------------------------------------- inside


def _table(prompts: Sequence[Prompt], values: Sequence[PromptValue]) -> pa.Table:
    columns = [
        [prompt.id for prompt in prompts],
        [prompt.source for prompt in prompts],
        [prompt.text for prompt in prompts],
        [len(prompt.critic_token_ids) for prompt in prompts],
        [value.value for value in values],
        [value.value_logit for value in values],
    ]
    return pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def _require_readable(prompts: Sequence[Prompt], critic: ExportedCritic) -> None:
    limit = critic.max_tokens
    for prompt in prompts:
        if limit is not None and len(prompt.critic_token_ids) > limit:
            raise UserError(
                f"prompt {prompt.id}: {len(prompt.critic_token_ids)} tokens, the critic {critic.directory} "
                "reads at most "
                f"{limit}: remove it from the data"
            )


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetWriter]:
    """Yield a writer whose file gets its name only when it is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
                yield writer
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}): free the disk, or choose another --out"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
