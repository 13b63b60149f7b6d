"""The library on real actors: docs/library.md and the notebook as they stand, and a process with a
Ray session of its own.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

import sppo_ray as sr

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "library.md"
NOTEBOOK = REPOSITORY / "docs" / "examples" / "quickstart_notebook.py"
SMALL: dict[str, Any] = {
    "data": {"prompts_per_step": 16, "minibatch_size": 16},
    "critic": {"warmup_steps": 0},
    "eval": {"every": 0, "at_start": False},
    "logging": {"progress": "plain"},
}
ROWS = [{"prompt": f"a{i}b{j}=", "ground_truth": str(i + j)} for i in range(1, 10) for j in range(1, 10)]


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=290,
        env=os.environ | {"PYTHONPATH": path} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def actors_left() -> list[str]:
    """The processes of a run among those of this session. Ray names them by their class."""
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    return [
        name for name in names if name.startswith(("ray::Learner", "ray::Critic", "ray::Reward", "ray::Ro"))
    ]


class HalfSettings(sr.AlgorithmSettings):
    type: Literal["half"] = "half"


HALF = sr.AlgorithmSpec(HalfSettings, lambda samples, _: [s.reward - 0.5 for s in samples], needs="sample")


@pytest.mark.slow
def test_runs_in_a_notebook_with_a_ray_session_of_its_own(ray_cluster: Any, tmp_path: Path) -> None:
    """Twice in one process, with objects for everything; the session stays, its actors go."""
    steps: list[float] = []

    def reward(response: str, ground_truth: str, extra: dict[str, Any]) -> float:
        return float(ground_truth in response)

    def enough(row: Any) -> None:
        steps.append(row["step"])
        if row["step"] == 2:
            raise sr.StopTraining("two are enough")

    def bad(row: Any) -> None:
        raise KeyError("mine")

    async def cells() -> tuple[sr.Run, sr.Run]:
        first = sr.train(
            "quickstart", run_dir=tmp_path / "first", reward=reward, dataset=ROWS, algorithm=HALF,
            callbacks=[enough], loop={"steps": 5}, **SMALL,
        )  # fmt: skip
        with pytest.raises(KeyError, match="mine"):
            sr.train("quickstart", run_dir=tmp_path / "second", callbacks=[bad], loop={"steps": 3}, **SMALL)
        return first, sr.Run(tmp_path / "second")

    first, second = asyncio.run(cells())
    assert (steps, first.summary.status, first.status.state.step) == ([1.0, 2.0], "stopped", 2)
    table = first.trajectories(2)
    assert table["reward"].to_pylist() == [
        float(truth in text)
        for truth, text in zip(
            table["ground_truth"].to_pylist(), table["response_text"].to_pylist(), strict=True
        )
    ]
    assert [advantage + 0.5 for advantage in table["advantage"].to_pylist()] == table["reward"].to_pylist()
    assert (first.config.reward.function.type, first.config.data.train[0].path) == (
        "pickled",
        str(tmp_path / "first" / "dataset.parquet"),
    )
    assert (second.summary.status, second.status.state.step) == ("stopped", 1)
    assert [event["message"] for event in second.events if event["kind"] == "callback"] == [
        "a callback failed, the run stops: KeyError: 'mine'"
    ]
    assert ray_cluster.is_initialized()
    deadline = time.monotonic() + 30
    while (left := actors_left()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left

    digest = first.config.reward.function.sha256
    first.resume(loop={"steps": 3}, allow_module=[digest])  # with its own reward and rows
    assert (first.summary.status, first.status.state.step) == ("finished", 3)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    python(str(NOTEBOOK), cwd=tmp_path, STEPS="3", RUN_DIR=str(tmp_path / "run"))
    assert (tmp_path / "run" / "notebook.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path) -> None:
    """Its blocks of Python, one after the other, below a running event loop as in a notebook."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    cells = textwrap.indent("\n".join(blocks), "    ")
    (tmp_path / "page.py").write_text(
        f"import asyncio\n\nasync def cells():\n{cells}\n\nasyncio.run(cells())\n"
    )
    printed = python("page.py", cwd=tmp_path)
    assert "finished" in printed and (tmp_path / "runs" / "mine" / "reward.pkl").is_file()
