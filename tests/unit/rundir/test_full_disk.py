"""A full disk stops a run with its remedy, wherever it strikes, and costs no checkpoint (FAKE
workers; the real ranks' writes: tests/ray/test_exact_resume.py).
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import pkgutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.cli.main import main
from sppo_ray.errors import DiskFull, is_disk_full
from sppo_ray.file_digests import FileDigest, digest_folder
from sppo_ray.rundir.disk import full_disk_named
from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.trainer.checkpoint import find_checkpoint, verify_checkpoint
from tests.unit.fakes import FakeLearner
from tests.unit.trainer.test_loop import Run

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
SETTINGS = ("--loop.steps=4", "--checkpoint.every=1", "--checkpoint.keep=9")


def failing(monkeypatch: pytest.MonkeyPatch, target: str, *, call: int, when: Callable[..., bool]) -> None:
    """From its `call`-th call on for which `when` holds, `target` finds the disk full."""
    original, calls = pkgutil.resolve_name(target), itertools.count(1)

    def write(*arguments: Any, **options: Any) -> Any:
        if when(*arguments) and next(calls) >= call:
            raise FULL
        return original(*arguments, **options)

    monkeypatch.setattr(target, write)


def named(name: str) -> Callable[..., bool]:
    return lambda *arguments: any(name in str(getattr(one, "path", one)) for one in arguments)


WRITES = {
    "metrics": ("sppo_ray.rundir.jsonlines.JsonLines.append", 3, named("metrics.jsonl")),
    "events": ("sppo_ray.rundir.jsonlines.JsonLines.append", 3, named("events.jsonl")),
    "trajectories": ("pyarrow.parquet.write_table", 3, lambda *_: True),
    "status": ("sppo_ray.rundir.layout.write_atomically", 4, named("status.json")),
    "manifest": ("sppo_ray.trainer.checkpoint._write_durably", 3, named("manifest.json")),
    "sums": ("sppo_ray.rundir.metrics.MetricsWriter.flush_durably", 3, lambda *_: True),
    "commit": ("os.replace", 1, named("writing-step-000003")),
}


@pytest.mark.parametrize("write", WRITES)
def test_each_write_that_finds_the_disk_full_stops_the_run_resumably(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    target, call, when = WRITES[write]
    run = Run(tmp_path, *SETTINGS)
    with monkeypatch.context() as patched:
        failing(patched, target, call=call, when=when)
        with pytest.raises((OSError, DiskFull)) as stopped:
            run.train()
    assert isinstance(stopped.value, DiskFull) or is_disk_full(stopped.value)
    check_and_go_on(tmp_path, least=2)


def check_and_go_on(tmp_path: Path, *, least: int) -> None:
    """Check that there are at least `least` checkpoints, that all are complete, and that the run
    continues to its end and records each step once.
    """
    path = tmp_path / "run"
    kept = sorted((path / "checkpoints").iterdir())
    assert [verify_checkpoint(one).step for one in kept] == list(range(1, len(kept) + 1)) and len(
        kept
    ) >= least
    found = find_checkpoint(path / "checkpoints", pytest.fail)
    assert found is not None
    state = Run(tmp_path, *SETTINGS).train(found[1])
    assert state.step == 4
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]
    assert json.loads((path / "status.json").read_text())["state"]["step"] == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"this process may not mount a file system: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_file_system_that_is_really_full(small_disk: Path) -> None:
    class Heavy(FakeLearner):
        """A checkpoint of 80 KiB, told of in the words of another library when it does not fit."""

        async def save(self, directory: Path) -> dict[str, FileDigest]:
            try:
                (directory / "weights").write_bytes(bytes(80 * 1024))
            except OSError as error:
                raise RuntimeError("PytorchStreamWriter failed writing file data/2") from error
            return digest_folder(directory)

    run = Run(small_disk, *SETTINGS, "--logging.trajectories=false")
    run.learner = Heavy(run.log)
    with pytest.raises(
        DiskFull, match=r"no space left on the disk of .* while writing step-000003: free some"
    ):
        run.train()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    check_and_go_on(small_disk, least=2)


def test_another_failure_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), full_disk_named(tmp_path, "writing"):
        raise RuntimeError("shape")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_command_says_what_to_do_and_has_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def full(*_: Any, **__: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("sppo_ray.launch.train.train", full)
    assert main(["train", "quickstart", "--run-dir", str(tmp_path)]) == 4
    assert (
        f"error: no space left on the disk of {tmp_path}: free some and add --resume"
        in capsys.readouterr().err
    )
