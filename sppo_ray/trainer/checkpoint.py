"""Checkpoints: one directory that appears whole or not at all, with a manifest that proves it.

    checkpoints/step-000050/
        manifest.json     step, versions, counters, settings, SHA-256 and size of every other file, and its own SHA-256
        learner/ critic/  written by the ranks themselves (DeepSpeed: weights, optimizer, scheduler, RNG)
        records/          what the recorder adds up over several steps

Everything is written under a temporary name, flushed, hashed, and then renamed; the manifest is the last file. The
state of the data needs no file: the prompts of step k are a pure function of (config, seed, k).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sppo_ray.config import RunConfig
from sppo_ray.errors import UserError
from sppo_ray.trainer.disk import full_disk_named

FORMAT = 2
_NAME = re.compile(r"step-(\d{6,})")
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What the loop itself must remember between steps."""

    step: int  # steps done; the next one has this index
    policy_version: int
    critic_version: int
    samples: int
    response_tokens: int  # generated, greedy baselines and dropped groups included
    seconds: float  # of training so far, over all incarnations
    restarts: int
    reward_errors: int
    initial_accuracy: float | None  # held-out; None = not evaluated
    final_accuracy: float | None
    best_accuracy: float | None

    @classmethod
    def initial(cls) -> TrainerState:
        return cls(0, 0, 0, 0, 0, 0.0, 0, 0, None, None, None)

    def restarted(self) -> TrainerState:
        """The same state, one restart later."""
        return replace(self, restarts=self.restarts + 1)


class CheckpointCorrupt(Exception):
    """A checkpoint whose files do not match its manifest."""


def checkpoint_path(root: Path, step: int) -> Path:
    return root / f"step-{step:06d}"


async def write_checkpoint(
    root: Path,
    state: TrainerState,
    writers: Mapping[str, Callable[[Path], Awaitable[None]]],
    *,
    settings: Mapping[str, Any],
    keep: int,
) -> Path:
    """Let each writer fill its folder, then commit the whole. Older checkpoints beyond `keep` go afterwards.

    On any failure the half-written directory is removed and the earlier checkpoints stay as they are. Raises what a writer
    raises, and DiskFull.
    """
    final = checkpoint_path(root, state.step)
    # A name of its own: the ranks of a killed run may go on writing for a while after the next one has started.
    temporary = root / f".writing-{final.name}-{secrets.token_hex(4)}"
    try:
        with full_disk_named(root, f"writing {final.name}"):
            root.mkdir(parents=True, exist_ok=True)
            for name, write in writers.items():
                await _fill(temporary / name, name, write)
            content = {"format": FORMAT, "settings": settings, "state": asdict(state), "files": _inventory(temporary)}
            manifest = content | {"sha256": _digest_of(content)}
            _write_durably(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
            if final.exists():
                shutil.rmtree(final)
            os.replace(temporary, final)
            _sync_directory(root)
    finally:  # also when it is interrupted: a half-written checkpoint must not stay
        shutil.rmtree(temporary, ignore_errors=True)
    _retain(root, keep, final)
    return final


async def _fill(folder: Path, name: str, write: Callable[[Path], Awaitable[None]]) -> None:
    folder.mkdir(parents=True)
    await write(folder)
    if not any(path.is_file() for path in folder.rglob("*")):
        raise UserError(
            f"the {name} saved its state and nothing of it is in {folder}: the run directory has to be on a file system "
            "that all nodes share; choose another --run-dir"
        )


def verify_checkpoint(path: Path) -> TrainerState:
    """Check every file against the manifest, and the manifest against itself; return the trainer's state.

    Raises CheckpointCorrupt naming the file, and UserError when another version of this program wrote it.
    """
    manifest = _read_manifest(path)
    expected = manifest.pop("sha256", None)
    if expected is not None and expected != _digest_of(manifest):
        raise CheckpointCorrupt(f"{path / _MANIFEST}: checksum differs from its own")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {manifest['format']}, this version reads {FORMAT}: resume with the version that "
            "wrote it, or start a new run from its export"
        )
    if expected is None:
        raise CheckpointCorrupt(f"{path / _MANIFEST}: not readable (its checksum is missing)")
    state = TrainerState(**manifest["state"])
    if checkpoint_path(path.parent, state.step) != path:
        raise CheckpointCorrupt(f"{path}: holds the state of step {state.step}")
    for name, entry in manifest["files"].items():
        _verify_file(path / name, entry)
    return state


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
    except FileNotFoundError:
        raise CheckpointCorrupt(f"{path}: {_MANIFEST} is missing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointCorrupt(f"{path / _MANIFEST}: not readable ({error})") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise CheckpointCorrupt(f"{path / _MANIFEST}: not readable (no manifest)")
    return manifest


def find_checkpoint(root: Path, on_skip: Callable[[str], None]) -> tuple[Path, TrainerState] | None:
    """The newest checkpoint that is whole, or None when there is none at all.

    `on_skip` hears of each newer one that is not. Raises UserError when checkpoints exist but none is whole.
    """
    candidates = _in_order(root)[::-1]
    for path in candidates:
        try:
            return path, verify_checkpoint(path)
        except CheckpointCorrupt as error:
            on_skip(f"{error}; set aside as {_set_aside(path).name}, trying the one before")
    if candidates:
        raise UserError(
            f"{root}: none of the {len(candidates)} checkpoints is whole; restore one from a copy, or start anew in "
            "another --run-dir"
        )
    return None


def _set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is neither tried again nor counted among the checkpoints to keep."""
    names = (f"damaged-{path.name}" + (f".{number}" if number else "") for number in itertools.count())
    free = next(name for name in names if not path.with_name(name).exists())
    return path.rename(path.with_name(free))


_DECIDES_THE_RESULT = (
    "seed", "algorithm.", "data.", "learner.", "critic.", "reward.function.", "loop.max_staleness", "loop.minibatch_order",
    "rollout.max_response_tokens", "rollout.temperature", "rollout.dtype",
)  # fmt: skip
_ONLY_DECIDES_HOW = ("cpus_per_rank", "gpus_per_rank", "timeout_s")


def resumable_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that a resumed run must share with the interrupted one, flat: {"learner.optimizer.lr": 1e-6, ...}.

    What only decides how fast, where or how often (workers, cluster, logging, evaluation) may change; so may the
    number of steps, with which a linear schedule is stretched.
    """
    flat = _flatten("", config.model_dump(mode="json"))
    return {name: value for name, value in flat if name.startswith(_DECIDES_THE_RESULT) and not name.endswith(_ONLY_DECIDES_HOW)}


def differing_settings(path: Path, settings: Mapping[str, Any]) -> list[str]:
    """How `settings` differ from those that a checkpoint was written with, e.g. "seed: 1 then, 2 now"."""
    stored = json.loads((path / _MANIFEST).read_bytes())["settings"]
    names = sorted(stored.keys() | settings.keys())
    return [f"{n}: {stored.get(n)!r} then, {settings.get(n)!r} now" for n in names if stored.get(n) != settings.get(n)]


def _flatten(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, (dict, list)) and node:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in items:
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), child)
    else:
        yield prefix, node


def _inventory(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): {"sha256": _digest(p, durably=True), "bytes": p.stat().st_size} for p in files}


def _verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise CheckpointCorrupt(f"{path}: file is missing")
    try:
        size, digest = path.stat().st_size, _digest(path)
    except OSError as error:
        raise CheckpointCorrupt(f"{path}: not readable ({error})") from None
    if size != expected["bytes"]:
        raise CheckpointCorrupt(f"{path}: {size} bytes, the manifest says {expected['bytes']}")
    if digest != expected["sha256"]:
        raise CheckpointCorrupt(f"{path}: checksum differs from the manifest's")


def _digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of JSON content, however it is indented."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path, *, durably: bool = False) -> str:
    with path.open("rb") as file:
        if durably:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _retain(root: Path, keep: int, newest: Path) -> None:
    """Keep `newest` and the `keep` - 1 before it. A later one is of a timeline that a resumed run has left."""
    for path in root.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)
    others = [path for path in _in_order(root) if path != newest]
    for path in others[: max(0, len(others) - (keep - 1))]:
        shutil.rmtree(path)


def _in_order(root: Path) -> list[Path]:
    """The checkpoints by step, oldest first."""
    found = [(int(match[1]), path) for path in root.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
