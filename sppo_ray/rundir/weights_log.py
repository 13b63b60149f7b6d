"""weights.jsonl: one line for each published version of the policy, with the proof of every engine
that served it.

{"version", "time", "digest", "bytes", "loop_steps", "probe_ids", "probe_logprobs",
 "engines": {"rollout-0": {"digest", "loaded", "probe_difference", "seconds"}}}

`digest` is the learner's, of all bytes in the engines' dtype. With the transports nccl and ipc it
combines the digests of the chunks, and an engine that got the version by flat shows that of the
buffer. `probe_logprobs` are the learner's log-probs of a fixed sequence of tokens: with them, two
machines whose kernels round differently can still compare weights. `loop_steps` is the length of
the run at that time, which scales a linear learning rate. A run that resumes publishes its version
again; the first line is from the process that made it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sppo_ray.protocols import PublishedWeights, WeightReceipt
from sppo_ray.rollout.weight_sync import probe_difference
from sppo_ray.rundir.jsonlines import JsonLines, finite_json, read_json_lines
from sppo_ray.rundir.layout import WEIGHTS


@dataclass(frozen=True, slots=True)
class WeightRecord:
    """The identity of one version of the weights."""

    version: int
    digest: str
    probe_logprobs: tuple[float, ...]  # nats; NaN where it was not finite
    loop_steps: int


class WeightLog:
    """Writes a run's weights.jsonl. `close()` it."""

    def __init__(self, run_dir: Path) -> None:
        self._lines = JsonLines(run_dir / WEIGHTS)

    def write(
        self, published: PublishedWeights, receipts: Sequence[WeightReceipt], *, loop_steps: int
    ) -> None:
        manifest = published.manifest
        engines = {
            receipt.worker: {
                "digest": receipt.digest,
                "loaded": receipt.num_loaded,
                "probe_difference": probe_difference(published, receipt)[0],
                "seconds": receipt.seconds,
            }
            for receipt in receipts
        }
        row = {
            "version": manifest.version,
            "time": time.time(),
            "digest": manifest.digest,
            "bytes": manifest.num_bytes,
            "loop_steps": loop_steps,
            "probe_ids": published.probe_ids,
            "probe_logprobs": published.probe_logprobs,
            "engines": engines,
        }
        self._lines.append(finite_json(row))

    def truncate_after(self, version: int) -> None:
        """Drop the versions after `version`, which a resumed run makes again."""
        self._lines.keep(lambda row: row["version"] <= version)

    def flush_durably(self) -> None:
        """Return when every line is on the disk."""
        self._lines.flush_durably()

    def close(self) -> None:
        self._lines.close()


def read_weights(run_dir: Path) -> dict[int, WeightRecord]:
    """Read the record of each version, by number. Raises ValueError naming a line that is not
    JSON.
    """
    found: dict[int, WeightRecord] = {}
    for row in read_json_lines(run_dir / WEIGHTS):
        probe = tuple(float("nan") if figure is None else figure for figure in row["probe_logprobs"])
        record = WeightRecord(row["version"], row["digest"], probe, row["loop_steps"])
        found.setdefault(record.version, record)
    return found
