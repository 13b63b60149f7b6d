"""Section `learner`: a rank of the learner."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import Found, at_most, on_gpu, packed_attention, require, wait_for
from benchmarks.gpu.models import SHAPES, micro_batch, row_lengths, save_checkpoint
from benchmarks.gpu_smoke import Check, Setup


def learner(setup: Setup) -> Found:
    """One LearnerRank in bfloat16: update, save, load, export, weights of a sync."""
    import numpy as np
    import torch

    import actors.learner
    from sppo_ray.algorithms.sppo import SPPOSettings
    from sppo_ray.config import LearnerSettings
    from sppo_ray.models.packed import PACKED, sequence_inputs
    from sppo_ray.models.policy import load_policy

    require(setup)
    folder = Path(tempfile.mkdtemp())
    save_checkpoint(SHAPES["tiny" if setup.tiny else "150M"], folder / "model")
    settings = LearnerSettings(
        model=str(folder / "model"),
        dtype="bfloat16",
        attention="auto" if packed_attention(setup.device)[0] == PACKED else "sdpa",
        gradient_checkpointing=True,
        gpus_per_rank=float(on_gpu(setup)),
        optimizer={"lr": 1e-3},
    )
    rank = actors.learner.LearnerRank(
        0,
        1,
        settings,
        model_path=str(folder / "model"),
        algorithm=SPPOSettings(),
        temperature=1.0,
        max_response_tokens=512,
        total_updates=10,
        seed=0,
        sync_dtype="bfloat16",
    )
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = call(*arguments)
        wait_for(setup.device)
        seconds[name] = time.perf_counter() - started
        return result

    yield "setup"
    started = timed("setup", lambda: rank.setup(*rank.address()))
    lengths = row_lengths(8, 24 if setup.tiny else 1024)
    batch = micro_batch(lengths, 30)
    batch = replace(batch, old_logprobs=rank.logprobs([batch])[0])
    first = rank.logprobs([batch])[0]
    yield "update"
    counts = (len(first), len(lengths))
    timed("update, first", rank.update, [batch], *counts)
    metrics = timed("update", rank.update, [batch], *counts)
    yield {"what": "setup", **started, "attention": settings.attention}
    yield {"what": "update", **{name: metrics[name] for name in ("loss", "grad_norm", "lr", "skipped")}}
    yield "save and load"
    after = rank.logprobs([batch])[0]
    timed("save", rank.save, folder / "state")
    rank.update([batch], *counts)
    moved = rank.logprobs([batch])[0]
    timed("load", rank.load, folder / "state")
    again = rank.logprobs([batch])[0]
    changed = bool((first != after).any() and (after != moved).any())
    yield Check("updates change the log-probs", "changed", changed, changed)
    yield at_most(
        "log-probs after save, update, load: largest difference", 0.0, float(abs(again - after).max())
    )
    yield "sync and export"
    manifest, flat, probe = timed("flat_weights", rank.flat_weights, 1)
    timed("export", rank.export, folder / "export", folder / "model")
    exported = load_policy(folder / "export", dtype="bfloat16", attention=settings.attention)
    inputs = sequence_inputs(np.array(probe[0]), device=setup.device)
    own, _ = exported.to(setup.device)(inputs, 1.0)
    difference = float((own.detach().cpu() - torch.tensor(probe[1])).abs().max())
    yield at_most("log-probs of the export against the probe: largest difference", 0.05, difference)
    yield {"what": "bytes of a sync", "parameters": len(manifest.names), "gb": flat.nbytes / 1e9}
    yield {"what": "memory", "peak_gb": rank.memory() / 1e9}
    for name, spent in seconds.items():
        yield {"what": name, "seconds": spent}
    rank.close()
