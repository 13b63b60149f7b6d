"""A killed and resumed run equals an uninterrupted run: weights, optimizers, random states,
prompts, metrics.

The reference is one uninterrupted run of eight steps with a checkpoint after each. Ray, vLLM and
DeepSpeed are real. The driver kills itself with SIGKILL at a given point
(`tests/chaos/kill_at.py`).
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from sppo_ray.rundir.metrics import read_events, read_metrics
from sppo_ray.rundir.trajectories import read_step
from sppo_ray.trainer.checkpoint import verify_checkpoint
from tests.ray import run_record
from tests.ray.test_train import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 8
LINGER_S = 10  # what a dead driver leaves behind ends by itself; a resume does not depend on it
TINY = [
    f"--loop.steps={STEPS}",
    "--seed=3",
    "--data.prompts_per_step=32",
    "--data.minibatch_size=16",
    "--data.held_out.0.size=16",
    "--critic.warmup_steps=1",
    "--checkpoint.every=1",
    "--checkpoint.keep=20",
    "--eval.every=3",
    "--logging.progress=plain",
]
CHAINS = ({"generating": 2, "updating": 3, "syncing": 4}, {"stepped": 5, "evaluating": 6, "checkpointing": 7})
"""Where a run dies and in which step, one after the other; it is evaluated after steps 3, 6 and 8.
"""


def run(
    run_dir: Path, *more: str, kill_at: tuple[str, int] | None = None
) -> subprocess.CompletedProcess[str]:
    """`sppo-ray train` to its end."""
    program = (
        ["-m", "sppo_ray"] if kill_at is None else ["-m", "tests.chaos.kill_at", kill_at[0], str(kill_at[1])]
    )
    command = [sys.executable, *program, "train", "quickstart", "--run-dir", str(run_dir), *TINY, *more]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    family: set[psutil.Process] = set()
    while process.poll() is None:
        try:
            process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            family |= set(psutil.Process(process.pid).children(recursive=True))
    psutil.wait_procs(family, timeout=LINGER_S)
    return subprocess.CompletedProcess(command, process.returncode, process.stdout.read(), "")


def finish(run_dir: Path, *more: str) -> str:
    done = run(run_dir, *more)
    assert done.returncode == 0, done.stdout
    return done.stdout


def killed(run_dir: Path, point: str, step: int, *more: str) -> None:
    done = run(run_dir, *more, kill_at=(point, step))
    assert done.returncode == -signal.SIGKILL, done.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finish(run_dir)
    return run_dir


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Callable[[int], Path]:
    """copy(k): the uninterrupted run with its checkpoints up to step k; what it recorded later is
    for the resume to drop.
    """

    def make(step: int) -> Path:
        run_dir = tmp_path / "run"
        shutil.copytree(whole, run_dir, ignore=shutil.ignore_patterns("export", "summary.json", "*.png"))
        for path in run_dir.glob("checkpoints/step-*"):
            if int(path.name[5:]) > step:
                shutil.rmtree(path)
        return run_dir

    return make


@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_killed_at_any_point_and_resumed_it_is_the_uninterrupted_run(
    whole: Path, copy: Callable[[int], Path], chain: dict[str, int]
) -> None:
    """Killed, resumed and killed again at the next point, and again; then resumed to the end. After
    each death the checkpoints so far are the uninterrupted run's, in the end everything is.
    """
    run_dir = copy(min(chain.values()) - 2)
    expected = run_record.checkpoints(whole)
    for point, step in chain.items():
        killed(run_dir, point, step, "--resume")
        # The step before left its checkpoint, the one that it died in did not.
        newest = max(path.name for path in (run_dir / "checkpoints").glob("step-*"))
        assert newest == f"step-{step - 1:06d}", point
        assert run_record.checkpoints(run_dir) == {
            name: expected[name] for name in expected if name <= newest
        }, point
    finish(run_dir, "--resume")
    assert_equal_records(whole, run_dir)
    starts = [
        event["message"] for event in read_events(run_dir)[events_of(whole) :] if event["kind"] == "restored"
    ]
    assert starts == [
        f"from step-{step:06d}"
        for step in (min(chain.values()) - 2, *(step - 1 for step in chain.values()))
        if step
    ]
    assert not list((run_dir / "checkpoints").glob(".writing-*"))


def events_of(run_dir: Path) -> int:
    return len(read_events(run_dir))


def assert_equal_records(whole: Path, run_dir: Path) -> None:
    expected, actual = run_record.record(whole), run_record.record(run_dir)
    for part in expected:
        assert actual[part] == expected[part], part


def test_overlapped_no_prompt_is_lost_or_repeated_and_no_sample_is_too_old(
    whole: Path, tmp_path: Path
) -> None:
    """Staleness 1: when it dies, the prompts of the next step are on their way, or generated
    already.
    """
    run_dir, overlapped = tmp_path / "run", "--loop.max_staleness=1"
    killed(run_dir, "updating", 3, overlapped)
    killed(run_dir, "checkpointing", 5, overlapped, "--resume")
    finish(run_dir, overlapped, "--resume")
    assert prompts(run_dir) == prompts(whole)
    # A cohort goes out one version early, but for the first and those that a restart dispatched
    # again: of steps 3 and 5.
    oldest = {row["step"]: row["staleness/max"] for row in read_metrics(run_dir) if "staleness/max" in row}
    assert sorted(oldest) == list(range(1, STEPS + 1)) and max(oldest.values()) == 1
    assert [oldest[step] for step in (1, 3, 5)] == [0, 0, 0]
    assert json.loads((run_dir / "summary.json").read_text())["policy_version"] == STEPS


def prompts(run_dir: Path) -> dict[int, list[str]]:
    """The prompts that each step trained on, in their order."""
    return {
        step: read_step(run_dir, step, ["prompt_id"])["prompt_id"].to_pylist() for step in range(1, STEPS + 1)
    }


def test_damage_of_every_kind_is_named_and_healed_from_the_checkpoint_before(
    whole: Path, copy: Callable[[int], Path]
) -> None:
    run_dir = copy(STEPS)
    checkpoints = run_dir / "checkpoints"
    flip_a_bit(checkpoints / f"step-{STEPS:06d}" / "learner" / "state" / "mp_rank_00_model_states.pt")
    tear(checkpoints / f"step-{STEPS - 1:06d}" / "manifest.json")
    (checkpoints / f".writing-step-{STEPS + 1:06d}-dead" / "learner").mkdir(parents=True)
    for name in ("status.json", f"trajectories/step-{STEPS:06d}.parquet", "metrics.jsonl", "events.jsonl"):
        tear(run_dir / name)
    printed = finish(run_dir, "--resume")
    assert (
        f"checksum differs from the manifest's; set aside as damaged-step-{STEPS:06d}, trying the one before"
        in printed
    )
    assert f"set aside as damaged-step-{STEPS - 1:06d}" in printed and f"from step-{STEPS - 2:06d}" in printed
    assert_equal_records(whole, run_dir)
    assert not list(checkpoints.glob(".writing-*"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def tear(path: Path) -> None:
    """Cut off the last 20 bytes."""
    content = path.read_bytes()
    path.write_bytes(content[:-20])


def test_a_full_disk_stops_the_run_with_the_remedy_and_costs_no_checkpoint(
    whole: Path, tmp_path: Path
) -> None:
    """A file system of 13 MiB takes three or four of the run's checkpoints of 3.1 MiB; the ranks'
    own writes hit its end.
    """
    with small_disk(tmp_path / "disk", mebibytes=13) as disk:
        run_dir = disk / "run"
        stopped = run(run_dir)
        assert stopped.returncode == 4, stopped.stdout
        assert "error: no space left on the disk of" in stopped.stdout and "Traceback" not in stopped.stdout
        assert "continue with --resume" in stopped.stdout
        kept = sorted((run_dir / "checkpoints").iterdir())
        assert kept and [verify_checkpoint(path).step for path in kept] == list(range(1, len(kept) + 1))
        status = json.loads((run_dir / "status.json").read_text())
        assert status["phase"] == "failed" and "no space left" in status["last_error"]["message"]
        subprocess.run(["mount", "-o", "remount,size=256m", str(disk)], check=True)
        finish(run_dir, "--resume")
        assert_equal_records(whole, run_dir)


@contextmanager
def small_disk(path: Path, *, mebibytes: int) -> Iterator[Path]:
    """A file system of its own at `path`; skips the test where this process may not mount one."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"this process may not mount a file system: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


METHODS = {
    "spo": [
        "--algorithm.type=spo",
        "--data.train.0.size=64",
        "--data.curriculum={candidates: 2, sharpness: 0.5, floor: 0.1}",
        "--critic.warmup_steps=0",
    ],
    "sao": [
        "--algorithm.type=sao",
        "--critic.updates_per_minibatch=2",
        "--critic.frozen_parameters=self_attn",
    ],
    "sppo-tracker": ["--algorithm.tracker.rho=0.9", "--data.train.0.size=64"],
}
"""Methods with a state of their own, and runs of five steps."""


@pytest.mark.parametrize("method", METHODS)
def test_a_method_with_a_state_of_its_own_resumes_exactly(method: str, tmp_path: Path) -> None:
    short = [*METHODS[method], "--loop.steps=5"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    finish(whole, *short)
    killed(resumed, "updating", 4, *short)
    finish(resumed, "--resume", *short)
    assert_equal_records(whole, resumed)
    if method != "sao":
        assert (resumed / "checkpoints" / "step-000005" / "tracker" / "tracker.json").is_file()
