"""The parts of a run that must be equal after a kill and resume: everything except times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sppo_ray.rundir.metrics import depends_on_the_clock, read_metrics
from sppo_ray.rundir.trajectories import read_step, steps
from sppo_ray.rundir.weights_log import read_weights

CLOCK_COLUMNS = ("seconds", "reward_seconds")
CLOCK_FIELDS = ("seconds", "train_seconds")


def exported_weights(run_dir: Path) -> dict[str, str]:
    """SHA-256 of each exported weight file."""
    files = sorted((run_dir / "export").rglob("*.safetensors"))
    return {str(f.relative_to(run_dir)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl line by line."""
    return [
        {name: value for name, value in row.items() if not depends_on_the_clock(name)}
        for row in read_metrics(run_dir)
    ]


def trajectories(run_dir: Path) -> dict[int, list[dict[str, Any]]]:
    return {
        step: read_step(run_dir, step).drop_columns(list(CLOCK_COLUMNS)).to_pylist()
        for step in steps(run_dir)
    }


def evaluations(run_dir: Path) -> dict[str, dict[str, Any]]:
    found = {
        path.name: json.loads(path.read_text()) for path in sorted((run_dir / "evaluations").glob("*.json"))
    }
    return {
        name: {field: value for field, value in one.items() if field not in CLOCK_FIELDS}
        for name, one in found.items()
    }


def checkpoints(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Of each checkpoint the trainer's counters, the settings, and a hash of every file: weights,
    both optimizers, schedule positions, random states, sums.
    """
    return {path.name: _checkpoint(path) for path in sorted((run_dir / "checkpoints").glob("step-*"))}


def record(run_dir: Path) -> dict[str, Any]:
    """All of it."""
    return {
        "export": exported_weights(run_dir),
        "metrics": metrics(run_dir),
        "trajectories": trajectories(run_dir),
        "evaluations": evaluations(run_dir),
        "checkpoints": checkpoints(run_dir),
        "weights": read_weights(run_dir),
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    manifest = json.loads((path / "manifest.json").read_text())
    state = {name: value for name, value in manifest["state"].items() if name not in ("seconds", "restarts")}
    files = {name: _content_hash(path / name) for name in sorted(manifest["files"])}
    return {"state": state, "settings": manifest["settings"], "files": files}


def _content_hash(path: Path) -> str:
    """Of a file of torch.save its contents: how often pickle refers back to an equal string depends
    on who made the string.
    """
    digest = hashlib.sha256()
    if path.suffix == ".pt":
        _feed(digest, torch.load(path, map_location="cpu", weights_only=False))
    else:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _feed(digest: Any, node: Any) -> None:
    if isinstance(node, torch.Tensor):
        digest.update(f"{node.dtype} {tuple(node.shape)}".encode())
        digest.update(node.detach().reshape(-1).view(torch.uint8).numpy().tobytes() if node.numel() else b"")
    elif isinstance(node, np.ndarray):
        digest.update(f"{node.dtype} {node.shape}".encode() + node.tobytes())
    elif isinstance(node, Mapping):
        for key in sorted(node, key=repr):
            digest.update(f"{key!r}:".encode())
            _feed(digest, node[key])
    elif isinstance(node, (list, tuple)):
        digest.update(f"{len(node)} of".encode())
        for child in node:
            _feed(digest, child)
    elif hasattr(node, "__dict__") and not isinstance(node, type):
        digest.update(type(node).__qualname__.encode())
        _feed(digest, vars(node))
    else:
        digest.update(repr(node).encode())
