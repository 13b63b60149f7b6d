"""The run directory: who may write to it, and that what is in it is whole."""

from __future__ import annotations

import ast
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sppo_ray.errors import UserError
from sppo_ray.rundir import layout
from sppo_ray.rundir.environment import environment
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.metrics import MetricsWriter
from sppo_ray.rundir.summary import Summary
from sppo_ray.tracking.tensorboard import TensorBoard

HOLD = (
    "import sys, time; from sppo_ray.rundir.layout import RunDir\n"
    "run = RunDir.create(sys.argv[1], resume=False); print('held', flush=True); time.sleep(60)"
)


def begun(path: Path) -> Path:
    run = RunDir.create(path, resume=False)
    run.write_config("name: run\n")
    with MetricsWriter(path) as writer:
        writer.write(0, {"eval/accuracy": 0.43})
    run.close()
    return path


# ----------------------------------------------------------------------------------------- creating


def test_a_new_directory_is_made_with_its_parents(tmp_path: Path):
    run = RunDir.create(tmp_path / "runs" / "a", resume=False)
    assert run.path.is_dir() and not run.is_run
    run.write_config("name: run\n")
    assert run.is_run


def test_a_run_is_not_overwritten(tmp_path: Path):
    path = begun(tmp_path / "a")
    with pytest.raises(UserError, match="holds a run already: continue it with --resume, or choose another"):
        RunDir.create(path, resume=False)
    RunDir.create(path, resume=True).close()  # the refusal left no lock behind


def test_a_start_that_failed_can_be_repeated_or_resumed(tmp_path: Path):
    run = RunDir.create(tmp_path, resume=False)
    run.write_config("name: run\n")
    MetricsWriter(tmp_path).close()  # opened, nothing measured
    run.close()
    for resume in (False, True):
        RunDir.create(tmp_path, resume=resume).close()


@pytest.mark.parametrize("result", ["summary.json", "checkpoints/step-000010/manifest.json"])
def test_a_checkpoint_or_a_summary_is_a_result(tmp_path: Path, result: str):
    RunDir(tmp_path).write_json(result, {})
    with pytest.raises(UserError, match="holds a run already"):
        RunDir.create(tmp_path, resume=False)


def test_a_directory_with_other_files_is_no_run(tmp_path: Path):
    (tmp_path / "stdout.log").write_text("started by a script that logs here\n")
    RunDir.create(tmp_path, resume=False).close()


def test_nothing_to_resume_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="holds no run to resume"):
        RunDir.create(tmp_path / "typo", resume=True)
    assert not (tmp_path / "typo").exists()


def test_a_file_is_no_directory(tmp_path: Path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunDir.create(tmp_path / "a", resume=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        RunDir.create(tmp_path / "a", resume=False)


# ------------------------------------------------------------------------------------------ locking


def test_a_second_writer_is_refused_and_told_who_holds_it(tmp_path: Path):
    run = RunDir.create(tmp_path / "a", resume=False)
    with pytest.raises(UserError, match=rf"in use by pid {os.getpid()} on .*choose another --run-dir"):
        RunDir.create(tmp_path / "a", resume=False)
    run.close()
    RunDir.create(tmp_path / "a", resume=False).close()


def test_the_lock_of_a_killed_writer_is_taken_over(tmp_path: Path):
    path = tmp_path / "a"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"in use by pid {process.pid} on "):
        RunDir.create(path, resume=False)
    process.kill()
    process.wait()
    process.stdout.close()
    RunDir.create(path, resume=False).close()
    assert (path / "run.lock").read_text().startswith(f"pid {os.getpid()} on ")


def test_a_child_process_does_not_keep_the_lock(tmp_path: Path):
    run = RunDir.create(tmp_path / "a", resume=False)
    child = os.fork()  # holds a copy of every file descriptor, the lock's too
    if child == 0:
        time.sleep(30)
        os._exit(0)
    run.close()
    try:
        RunDir.create(tmp_path / "a", resume=False).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# ------------------------------------------------------------------------------------------ content


def test_the_layout(tmp_path: Path):
    run = RunDir(tmp_path)
    MetricsWriter(run.path).close()
    TensorBoard(run.tensorboard).close()
    assert run.metrics.exists() and (run.path / "tensorboard").is_dir()
    names = [
        path.name for path in (run.config, run.events, run.status, run.summary, run.environment, run.curve)
    ]
    assert names == [
        "config.yaml",
        "events.jsonl",
        "status.json",
        "summary.json",
        "environment.json",
        "curve.png",
    ]
    folders = [path.name for path in (run.trajectories, run.evaluations, run.checkpoints, run.export)]
    assert folders == ["trajectories", "evaluations", "checkpoints", "export"]


def test_json_is_written_whole_and_without_nan(tmp_path: Path):
    run = RunDir(tmp_path)
    path = run.write_json(
        "evaluations/step-000010.json", {"accuracy": math.nan, "pass_at": {4: 0.5}, "sources": ("a",)}
    )
    assert path == tmp_path / "evaluations" / "step-000010.json"
    assert json.loads(path.read_text()) == {"accuracy": None, "pass_at": {"4": 0.5}, "sources": ["a"]}
    with pytest.raises(TypeError):
        run.write_json("evaluations/step-000010.json", {"accuracy": object()})
    assert json.loads(path.read_text())["sources"] == ["a"]  # a failed write leaves the old content


def test_the_summary_holds_the_contract(tmp_path: Path):
    summary = Summary(
        name="quickstart",
        status="finished",
        algorithm="sppo",
        seed=1,
        steps=130,
        seconds=260.0,
        samples=33_280,
        response_tokens=1_300_000,
        initial_accuracy=0.43,
        final_accuracy=0.87,
        best_accuracy=0.88,
        policy_version=520,
        critic_version=532,
        reward_errors=0,
        restarts=0,
    )
    tree = json.loads(RunDir(tmp_path).write_summary(summary).read_text())
    contract = {
        "algorithm", "seed", "steps", "seconds", "samples", "response_tokens", "initial_accuracy",
        "final_accuracy",
        "policy_version", "restarts",
    }  # fmt: skip
    assert contract <= tree.keys()
    # 1.3 M / 260 s
    assert (tree["seed"], tree["final_accuracy"], tree["tokens_per_second"]) == (1, 0.87, 5000.0)


def test_the_environment_is_known_and_tells_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretvalue")
    text = RunDir(tmp_path).write_environment().read_text()
    tree = json.loads(text)
    assert tree["python"] == ".".join(map(str, sys.version_info[:3]))
    assert tree["cpu_count"] == os.cpu_count() and tree["memory_gib"] > 0
    assert tree["packages"]["numpy"]
    assert "hf_verysecretvalue" not in text and str(Path.home()) not in text


def test_the_commit_is_the_one_of_this_source():
    root = Path(__file__).resolve().parents[3]
    git = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    expected = git.stdout.strip() if git.returncode == 0 and (root / ".git").exists() else None
    assert environment()["commit"] == expected


# ------------------------------------------------------------------------------------ after a death


def test_what_a_killed_writer_left_half_written_goes_and_what_is_being_written_stays(tmp_path: Path):
    path = begun(tmp_path / "a")
    (path / "evaluations").mkdir()
    old, new = (
        [path / ".status.json.99.tmp", path / "evaluations" / ".step-000003.json.99.tmp"],
        path / ".job.json.100.tmp",
    )
    for debris in (*old, new):
        debris.write_text("{")
    for debris in old:
        os.utime(debris, (time.time() - 120, time.time() - 120))
    RunDir.create(path, resume=True).close()
    assert not any(debris.exists() for debris in old) and new.exists()


@pytest.mark.parametrize(
    ("summary", "step"),
    [
        ('{"status": "finished", "steps": 7}', 7),
        ('{"status": "stopped", "steps": 7}', None),
        ('{"status": "fin', None),
        ("[]", None),
    ],
)
def test_a_run_is_finished_when_its_summary_says_so(tmp_path: Path, summary: str, step: int | None):
    assert RunDir(tmp_path).finished_after is None
    (tmp_path / "summary.json").write_text(summary)
    assert RunDir(tmp_path).finished_after == step


# ------------------------------------------------------------------------------------- one owner


REPOSITORY = Path(__file__).resolve().parents[3]
# Layers below rundir, which cannot import it: what they name is compared with the layout instead.
BELOW = {
    "sppo_ray/config/permissions.py",
    "sppo_ray/models/exported_critic.py",
}
NAMES = {
    value
    for name, value in vars(layout).items()
    if name.isupper() and isinstance(value, str) and name not in ("RUN_NAME", "TEMPORARY", "MANIFEST")
}
FILES = {name for name in NAMES if "." in name}
FOLDERS = {name.partition("/")[0] for name in NAMES - FILES}


def literals_of(path: Path) -> Iterator[str]:
    """Strings of a module that name a file or a folder of a run directory, docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    divided = {id(node.right) for node in ast.walk(tree) if isinstance(node, ast.BinOp)}
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in prose:
            continue
        first, *rest = node.value.split("/")
        is_folder = first in FOLDERS and (bool(rest) or id(node) in divided)
        if is_folder or FILES & {first, *rest}:
            yield node.value


def test_names_of_a_run_directory_are_written_down_in_its_package_alone() -> None:
    outside = {
        path.relative_to(REPOSITORY).as_posix(): found
        for package in ("sppo_ray", "actors")
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        if path.parent.name != "rundir" and (found := set(literals_of(path)))
    }
    assert outside.keys() == BELOW, outside
    assert set().union(*outside.values()) <= NAMES
