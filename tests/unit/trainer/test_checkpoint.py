"""Checkpoints are complete or absent, and damaged ones are refused."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.config.loading import load_config
from sppo_ray.errors import DiskFull, UserError
from sppo_ray.file_digests import FileDigest, digest_folder
from sppo_ray.trainer.checkpoint import (
    MANIFEST,
    CheckpointCorrupt,
    TrainerState,
    differing_settings,
    find_checkpoint,
    resumable_settings,
    verify_checkpoint,
    write_checkpoint,
)


def state(step: int) -> TrainerState:
    return TrainerState(step, step, 4 * step, 256 * step, 9000, 12.5, 0, 0, 0.43, None, None)


def write(root: Path, step: int, *, payload: bytes = b"weights", keep: int = 2, fail: bool = False) -> Path:
    async def learner(folder: Path) -> dict[str, FileDigest]:
        (folder / "rank0.bin").write_bytes(payload)
        return digest_folder(folder)

    async def critic(folder: Path) -> dict[str, FileDigest]:
        (folder / "deep").mkdir()
        (folder / "deep" / "rank0.bin").write_bytes(b"critic")
        if fail:
            raise OSError(28, "No space left on device")
        return digest_folder(folder)

    return asyncio.run(
        write_checkpoint(
            root, state(step), {"learner": learner, "critic": critic}, settings={"seed": 1}, keep=keep
        )
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


def test_a_full_disk_leaves_the_last_checkpoint_and_no_partial_one(tmp_path: Path) -> None:
    write(tmp_path, 10)
    with pytest.raises(
        DiskFull, match=r"no space left on the disk of .* while writing step-000020: free some"
    ):
        write(tmp_path, 20, fail=True)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000010"]


def into_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "learner/rank0.bin").write_bytes(b"weighty"), "checksum differs"),
        (lambda p: (p / "learner/rank0.bin").write_bytes(b"weigh"), "5 bytes, the manifest says 7"),
        (lambda p: (p / "learner/rank0.bin").unlink(), "file is missing"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda p: (p / "manifest.json").write_text('{"format": 2, "fil'), "not readable"),
        (lambda p: (p / "manifest.json").write_text("[]"), "not readable"),
        (lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe"), "not readable"),
        (lambda p: into_a_directory(p / "manifest.json"), "not readable"),
        (lambda p: into_a_directory(p / "learner/rank0.bin"), "file is missing"),
        (lambda p: edit(p / "manifest.json", '"step": 20', '"step": 21'), "checksum differs from its own"),
        (lambda p: edit(p / "manifest.json", '"sha256": "', '"sha257": "'), "checksum"),
        (lambda p: (shutil.rmtree(p), p.write_text("")), "not readable"),
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
    """keep = 1; step 100 is damaged, a run resumed from 50 writes 75: 75 must survive, and be
    found.
    """
    write(tmp_path, 50, keep=2)
    (write(tmp_path, 100, keep=2) / "learner/rank0.bin").write_bytes(b"garbage")
    found = find_checkpoint(tmp_path, lambda text: None)
    assert found is not None and found[1].step == 50
    write(tmp_path, 75, keep=1)
    found = find_checkpoint(tmp_path, lambda text: None)
    assert found is not None and found[1].step == 75
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-step-000100", "step-000075"]


def test_a_writer_whose_files_are_not_visible_is_an_error(tmp_path: Path) -> None:
    async def elsewhere(folder: Path) -> dict[str, FileDigest]:
        """The second of two ranks is on a node that does not share this file system."""
        (folder / "rank0.bin").write_bytes(b"")
        return digest_folder(folder) | {"rank1.bin": FileDigest("", 7)}

    with pytest.raises(UserError, match="the learner saved its state and no rank1.bin is in .* nodes share"):
        asyncio.run(write_checkpoint(tmp_path, state(1), {"learner": elsewhere}, settings={}, keep=1))
    assert list(tmp_path.iterdir()) == []


def test_writers_work_at_the_same_time_and_each_digests_its_own_files(tmp_path: Path) -> None:
    met = asyncio.Barrier(2)

    async def write_one(folder: Path) -> dict[str, FileDigest]:
        async with asyncio.timeout(10):
            await met.wait()  # for the other one
        (folder / "weights").write_bytes(b"1")
        return digest_folder(folder)

    writers = {"learner": write_one, "critic": write_one}
    path = asyncio.run(write_checkpoint(tmp_path, state(1), writers, settings={}, keep=1))
    assert verify_checkpoint(path) == state(1)


def test_a_flipped_bit_is_seen_wherever_it_is(tmp_path: Path) -> None:
    """One bit of each byte of the checkpoint, the manifest's included."""
    path = write(tmp_path, 20)
    for file in (path / "manifest.json", path / "learner/rank0.bin", path / "critic/deep/rank0.bin"):
        content = file.read_bytes()
        for index in range(len(content)):
            file.write_bytes(
                content[:index] + bytes([content[index] ^ 1 << index % 8]) + content[index + 1 :]
            )
            with pytest.raises(CheckpointCorrupt):
                verify_checkpoint(path)
        file.write_bytes(content)
    assert verify_checkpoint(path) == state(20)


def test_a_copy_under_another_steps_name_is_not_taken(tmp_path: Path) -> None:
    write(tmp_path, 10)
    shutil.copytree(tmp_path / "step-000010", tmp_path / "step-000099")
    found = find_checkpoint(tmp_path, lambda text: None)
    assert found is not None and found[1].step == 10


def test_the_same_step_may_be_damaged_twice(tmp_path: Path) -> None:
    write(tmp_path, 10)
    for _ in range(2):
        (write(tmp_path, 20) / "learner/rank0.bin").write_bytes(b"")
        find_checkpoint(tmp_path, lambda text: None)
    assert sorted(p.name for p in tmp_path.glob("damaged-*")) == [
        "damaged-step-000020",
        "damaged-step-000020.1",
    ]


def test_another_version_s_checkpoint_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path, 10)
    (path / "manifest.json").write_text(json.dumps({"format": 1, "state": {}, "files": {}, "settings": {}}))
    with pytest.raises(
        UserError,
        match="has checkpoint format 1, this version reads 2: resume with the version that wrote it",
    ):
        find_checkpoint(tmp_path, pytest.fail)
    assert path.is_dir()


def test_killed_at_any_write_the_old_checkpoint_or_the_new_one_is_whole(tmp_path: Path) -> None:
    """The writer dies, as by SIGKILL, at its n-th call to the file system, for every n until it
    gets through.
    """
    seen, number = set(), 0
    while True:
        root = tmp_path / str(number)
        write(root, 10, keep=1)
        died = in_a_child_that_dies_at(number, lambda root=root: write(root, 20, keep=1))
        found = find_checkpoint(root, pytest.fail)
        assert found is not None
        seen.add(found[1].step)
        write(root, 30, keep=1)
        assert [path.name for path in root.iterdir()] == ["step-000030"]  # and no debris stays
        if not died:
            break
        number += 1
    assert seen == {10, 20} and number > 10


def in_a_child_that_dies_at(number: int, work: Callable[[], object]) -> bool:
    """Whether `work`, in a forked child, got as far as its call number `number` of fsync, replace,
    mkdir, rmdir or unlink.
    """
    child = os.fork()
    if child == 0:
        calls = iter(range(10**6))

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(calls) == number:
                    os._exit(9)
                return function(*arguments, **options)

            return call

        for name in ("fsync", "replace", "mkdir", "rmdir", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)  # whatever it raised is not to run on in a second copy of pytest
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def test_settings_that_only_decide_how_may_differ_on_resume(tmp_path: Path) -> None:
    """Also when the checkpoint names one that is no longer compared."""
    settings = resumable_settings(load_config("quickstart"))
    stored = settings | {"learner.attention": "auto", "critic.gpus_per_rank": 1.0, "seed": 9}
    (tmp_path / MANIFEST).write_text(json.dumps({"settings": stored}))
    assert differing_settings(tmp_path, settings) == ["seed: 9 then, 1 now"]


def test_a_checkpoint_of_an_earlier_release_lacks_settings_that_came_later(tmp_path: Path) -> None:
    curriculum = ["data.curriculum.candidates=4"]
    settings = resumable_settings(load_config("quickstart", curriculum))
    later = ("critic.updates_per_minibatch", "data.curriculum.floor", "algorithm.loss")
    older = {name: value for name, value in settings.items() if name not in later}
    assert len(older) == len(settings) - 3
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": older}))
    assert differing_settings(tmp_path, settings) == []
    assert differing_settings(tmp_path, settings | {"critic.updates_per_minibatch": 2}) == [
        "critic.updates_per_minibatch: 1 then, 2 now"
    ]
    plain = {
        name: value
        for name, value in resumable_settings(load_config("quickstart")).items()
        if name not in later
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": plain}))
    assert differing_settings(tmp_path, resumable_settings(load_config("quickstart"))) == []
