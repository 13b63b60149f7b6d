"""Writes and verifies checkpoints: directories that are complete or do not exist.

    checkpoints/step-000050/
        manifest.json     step, versions, counters, settings, SHA-256 and size of every other file,
                          and its own SHA-256
        learner/ critic/  written by the ranks (DeepSpeed: weights, optimizer, scheduler, RNG)
        records/          the recorder's sums over several steps
        tracker/          success rates of the prompts (spo, and sppo with a tracker)

All writers write concurrently under a temporary name. Each writer flushes and hashes its own files.
The manifest is written last, then the directory is renamed. The position in the data needs no file,
because the prompts of step k are a pure function of (config, seed, k).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sppo_ray.config import RunConfig
from sppo_ray.config.flat import flatten
from sppo_ray.errors import UserError
from sppo_ray.file_digests import FileDigest, digest_file
from sppo_ray.rollout.tasks import all_or_none
from sppo_ray.rundir.disk import full_disk_named
from sppo_ray.rundir.layout import MANIFEST, step_name, step_of

FORMAT = 2
Writer = Callable[[Path], Awaitable[Mapping[str, FileDigest]]]
"""Fills a folder and returns the digests of its files, by their path in it."""


@dataclass(frozen=True, slots=True)
class TrainerState:
    """The loop's state between steps."""

    step: int  # finished steps; also the index of the next step
    policy_version: int
    critic_version: int
    samples: int
    response_tokens: int  # generated tokens, including greedy baselines and dropped groups
    seconds: float  # of training, over all restarts
    restarts: int
    reward_errors: int
    initial_accuracy: float | None  # held-out; None = not evaluated
    final_accuracy: float | None
    best_accuracy: float | None

    @classmethod
    def initial(cls) -> TrainerState:
        return cls(0, 0, 0, 0, 0, 0.0, 0, 0, None, None, None)

    def restarted(self) -> TrainerState:
        """Return the state with one more restart."""
        return replace(self, restarts=self.restarts + 1)


class CheckpointCorrupt(Exception):
    """A checkpoint whose files do not match its manifest."""


def checkpoint_path(root: Path, step: int) -> Path:
    return root / step_name(step)


async def write_checkpoint(
    root: Path,
    state: TrainerState,
    writers: Mapping[str, Writer],
    *,
    settings: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint, then delete the oldest ones beyond `keep`.

    The writers fill their folders concurrently. After a failure the partial directory is removed
    and earlier checkpoints are unchanged. Raises the errors of the writers, and DiskFull.
    """
    final = checkpoint_path(root, state.step)
    # A unique name, because ranks of a killed run may still write after the next run has started.
    temporary = root / f".writing-{final.name}-{secrets.token_hex(4)}"
    try:
        with full_disk_named(root, f"writing {final.name}"):
            root.mkdir(parents=True, exist_ok=True)
            filling = (_fill(temporary / name, name, write) for name, write in writers.items())
            filled = await all_or_none(*filling)
            content = {
                "format": FORMAT,
                "settings": settings,
                "state": asdict(state),
                "files": {
                    name: digest._asdict() for files in filled for name, digest in sorted(files.items())
                },
            }
            manifest = content | {"sha256": _digest_of(content)}
            _write_durably(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
            if final.exists():
                shutil.rmtree(final)
            os.replace(temporary, final)
            _sync_directory(root)
    finally:  # also after an interrupt
        shutil.rmtree(temporary, ignore_errors=True)
    _retain(root, keep, final)
    return final


async def _fill(folder: Path, name: str, write: Writer) -> dict[str, FileDigest]:
    """Return the digests of the files that `write` wrote, by their path in the checkpoint."""
    folder.mkdir(parents=True)
    digests = await write(folder)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if not found or found != digests.keys():
        missing = f"no {', '.join(sorted(digests.keys() - found))}" if found else "nothing of it"
        raise UserError(
            f"the {name} saved its state and {missing} is in {folder}: the run directory has to be on a "
            "file system that all nodes share; choose another --run-dir"
        )
    return {f"{name}/{file}": digest for file, digest in digests.items()}


def verify_checkpoint(path: Path) -> TrainerState:
    """Check every file against the manifest, and the manifest against its own checksum.

    Returns the trainer's state. Raises CheckpointCorrupt naming the file, and UserError for another
    checkpoint format.
    """
    manifest = _read_manifest(path)
    expected = manifest.pop("sha256", None)
    if expected is not None and expected != _digest_of(manifest):
        raise CheckpointCorrupt(f"{path / MANIFEST}: checksum differs from its own")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {manifest['format']}, this version reads {FORMAT}: resume with "
            "the version that "
            "wrote it, or start a new run from its export"
        )
    if expected is None:
        raise CheckpointCorrupt(f"{path / MANIFEST}: not readable (its checksum is missing)")
    state = TrainerState(**manifest["state"])
    if checkpoint_path(path.parent, state.step) != path:
        raise CheckpointCorrupt(f"{path}: holds the state of step {state.step}")
    for name, entry in manifest["files"].items():
        _verify_file(path / name, entry)
    return state


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise CheckpointCorrupt(f"{path}: {MANIFEST} is missing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointCorrupt(f"{path / MANIFEST}: not readable ({error})") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise CheckpointCorrupt(f"{path / MANIFEST}: not readable (no manifest)")
    return manifest


def find_checkpoint(root: Path, on_skip: Callable[[str], None]) -> tuple[Path, TrainerState] | None:
    """Return the newest complete checkpoint, or None when there is no checkpoint.

    `on_skip` is called with a message for each newer, damaged one. Raises UserError when all
    checkpoints are damaged.
    """
    candidates = _in_order(root)[::-1]
    for path in candidates:
        try:
            return path, verify_checkpoint(path)
        except CheckpointCorrupt as error:
            on_skip(f"{error}; set aside as {_set_aside(path).name}, trying the one before")
    if candidates:
        raise UserError(
            f"{root}: none of the {len(candidates)} checkpoints is whole; restore one from a copy, or start "
            "a new run in another --run-dir"
        )
    return None


def _set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is not tried again and does not count for `keep`."""
    names = (f"damaged-{path.name}" + (f".{number}" if number else "") for number in itertools.count())
    free = next(name for name in names if not path.with_name(name).exists())
    return path.rename(path.with_name(free))


_DECIDES_THE_RESULT = (
    "seed", "algorithm.", "data.", "learner.", "critic.", "reward.function.", "environment",
    "loop.max_staleness", "loop.minibatch_order",
    "rollout.max_response_tokens", "rollout.temperature", "rollout.dtype",
)  # fmt: skip
_ADDED_LATER = {"critic.updates_per_minibatch": 1, "data.curriculum.floor": 1e-4}
"""Settings that older checkpoints lack, with what their releases did; null is not listed."""
_ONLY_DECIDES_HOW = (
    "cpus_per_rank", "gpus_per_rank", "attention", "timeout_s", "cpus_per_replica", "gpus_per_replica",
    ".replicas", ".url", ".key_variable", ".concurrency", ".retries", ".cache",
    "environment.deadline_s", "environment.processes", "environment.memory_mib", "environment.cpus",
)  # fmt: skip


def resumable_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that must be equal on resume, flat: {"learner.optimizer.lr": 1e-6, ...}.

    Settings of workers, cluster, logging and evaluation may change. The number of steps may change
    too; a linear schedule then ends at the new last step.
    """
    flat = flatten(config.model_dump(mode="json"))
    return {
        name: value
        for name, value in flat.items()
        if name.startswith(_DECIDES_THE_RESULT) and not name.endswith(_ONLY_DECIDES_HOW)
    }


def differing_settings(path: Path, settings: Mapping[str, Any]) -> list[str]:
    """Return the differences of `settings` from those of a checkpoint: "seed: 1 then, 2 now"."""
    stored = json.loads((path / MANIFEST).read_bytes())["settings"]
    names = sorted(n for n in stored.keys() | settings.keys() if not n.endswith(_ONLY_DECIDES_HOW))
    then = {n: stored.get(n, _ADDED_LATER.get(n) if n in settings else None) for n in names}
    return [f"{n}: {then[n]!r} then, {settings.get(n)!r} now" for n in names if then[n] != settings.get(n)]


def _verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise CheckpointCorrupt(f"{path}: file is missing")
    try:
        digest, size = digest_file(path)
    except OSError as error:
        raise CheckpointCorrupt(f"{path}: not readable ({error})") from None
    if size != expected["bytes"]:
        raise CheckpointCorrupt(f"{path}: {size} bytes, the manifest says {expected['bytes']}")
    if digest != expected["sha256"]:
        raise CheckpointCorrupt(f"{path}: checksum differs from the manifest's")


def _digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON content, independently of its formatting."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    """Keep `newest` and the `keep` - 1 checkpoints before it.

    Later checkpoints belong to an earlier attempt that a resumed run has replaced.
    """
    for path in root.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)
    others = [path for path in _in_order(root) if path != newest]
    for path in others[: max(0, len(others) - (keep - 1))]:
        shutil.rmtree(path)


def _in_order(root: Path) -> list[Path]:
    """Return the checkpoints by step, oldest first."""
    found = [(step, path) for path in root.glob("step-*") if (step := step_of(path.name)) is not None]
    return [path for _, path in sorted(found)]
