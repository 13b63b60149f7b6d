"""Checkpoints appear whole or not at all, and a damaged one is never trusted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from sppo_ray.errors import UserError
from sppo_ray.trainer.checkpoint import CheckpointCorrupt, TrainerState, find_checkpoint, verify_checkpoint, write_checkpoint


def state(step: int) -> TrainerState:
    return TrainerState(step, step, 4 * step, 256 * step, 9000, 12.5, 0, 0, 0.43, None, None)


def write(root: Path, step: int, *, payload: bytes = b"weights", keep: int = 2, fail: bool = False) -> Path:
    async def learner(folder: Path) -> None:
        (folder / "rank0.bin").write_bytes(payload)

    async def critic(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "rank0.bin").write_bytes(b"critic")
        if fail:
            raise OSError(28, "No space left on device")

    return asyncio.run(
        write_checkpoint(root, state(step), {"learner": learner, "critic": critic}, settings={"seed": 1}, keep=keep)
    )


def test_round_trip_and_retention(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000020", "step-000030"]
    assert verify_checkpoint(tmp_path / "step-000030") == state(30)
    manifest = json.loads((tmp_path / "step-000030" / "manifest.json").read_text())
    # SHA-256 of b"critic", computed by hand with sha256sum.
    assert manifest["files"]["critic/deep/rank0.bin"]["bytes"] == 6
    assert set(manifest["files"]) == {"learner/rank0.bin", "critic/deep/rank0.bin"}


def test_a_full_disk_leaves_the_last_good_one_and_no_debris(tmp_path: Path) -> None:
    write(tmp_path, 10)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 20, fail=True)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000010"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "learner/rank0.bin").write_bytes(b"weighty"), "checksum differs"),
        (lambda p: (p / "learner/rank0.bin").write_bytes(b"weigh"), "5 bytes, the manifest says 7"),
        (lambda p: (p / "learner/rank0.bin").unlink(), "file is missing"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda p: (p / "manifest.json").write_text('{"format": 1, "fil'), "not readable"),
    ],
)
def test_damage_is_named_and_the_previous_one_taken(tmp_path: Path, damage, message: str) -> None:
    write(tmp_path, 10)
    damage(write(tmp_path, 20))
    with pytest.raises(CheckpointCorrupt, match=message):
        verify_checkpoint(tmp_path / "step-000020")
    skipped: list[str] = []
    found = find_checkpoint(tmp_path, skipped.append)
    assert found is not None and found[1].step == 10
    assert len(skipped) == 1 and message in skipped[0]


def test_nothing_whole_is_an_error_and_nothing_at_all_is_not(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, print) is None
    (write(tmp_path, 10) / "manifest.json").unlink()
    with pytest.raises(UserError, match="none of the 1 checkpoints is whole"):
        find_checkpoint(tmp_path, lambda text: None)


def test_the_newest_stays_when_a_damaged_later_one_lies_about(tmp_path: Path) -> None:
    """keep = 1; step 100 is damaged, a run resumed from 50 writes 75: 75 must survive, and be found."""
    write(tmp_path, 50, keep=2)
    (write(tmp_path, 100, keep=2) / "learner/rank0.bin").write_bytes(b"garbage")
    found = find_checkpoint(tmp_path, lambda text: None)
    assert found is not None and found[1].step == 50
    write(tmp_path, 75, keep=1)
    found = find_checkpoint(tmp_path, lambda text: None)
    assert found is not None and found[1].step == 75
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-step-000100", "step-000075"]


def test_a_writer_that_leaves_nothing_visible_is_no_checkpoint(tmp_path: Path) -> None:
    async def elsewhere(folder: Path) -> None:
        """A rank on a node that does not share this file system."""

    with pytest.raises(UserError, match="the learner saved its state and nothing of it is in .* all nodes share"):
        asyncio.run(write_checkpoint(tmp_path, state(1), {"learner": elsewhere}, settings={}, keep=1))
    assert list(tmp_path.iterdir()) == []
