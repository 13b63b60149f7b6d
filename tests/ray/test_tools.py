"""The written project, its report, a run that continues it, and their comparison, by the real
command line on real Ray, vLLM and DeepSpeed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sppo_ray.models.bundled import resolve_model, weights_digest
from sppo_ray.rundir.metrics import is_training_step, read_metrics
from sppo_ray.rundir.trajectories import read_step
from tests.hub_stand_in import Repository, hub

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = ["--loop.steps=2", "--data.prompts_per_step=16", "--data.minibatch_size=16", "--eval.prompts=16"]


def sppo_ray(folder: Path, *words: str, **environment: str) -> str:
    """Run a command as a user would in `folder`, with this checkout as the installed package."""
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "sppo_ray", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_from_an_empty_directory_to_a_comparison(tmp_path: Path) -> None:
    sppo_ray(tmp_path, "init", "mine")
    project = tmp_path / "mine"
    sppo_ray(project, "train", "recipe.yaml", "--run-dir", "runs/first", *SMALL)
    first = project / "runs/first"
    assert sum(is_training_step(row) for row in read_metrics(first)) == 2
    rows = read_step(first, 2, ["reward", "response_text", "ground_truth"]).to_pylist()
    for row in rows:  # by the reward function of the project
        answer = row["response_text"].rpartition("\\boxed{")[2].partition("}")[0]
        is_right = answer.isdecimal() and int(answer) == int(row["ground_truth"])
        assert row["reward"] == float(is_right)

    sppo_ray(project, "report", "runs/first")
    assert "function: reward:reward" in (first / "report.html").read_text(encoding="utf-8")

    said = sppo_ray(
        project,
        *("train", "--from", "runs/first", "--run-dir", "runs/second", "--allow-module=reward"),
        "--learner.optimizer.lr=1e-4",
    )
    assert f"starts from the policy and critic of {first}, step 2" in said
    second = project / "runs/second"
    published = [json.loads(line) for line in (second / "weights.jsonl").read_text().splitlines()]
    assert published
    job = json.loads((second / "job.json").read_text())
    assert job["continues"]["path"] == str(first) and job["continues"]["critic"]
    start, end = (weights_digest(run / "export/policy") for run in (first, second))
    assert start != end  # it learned on
    before, after = (
        [row["eval/accuracy"] for row in read_metrics(run) if "eval/accuracy" in row]
        for run in (first, second)
    )
    assert after[0] == before[-1]  # the same weights on the same prompts with the same seed

    table = sppo_ray(project, "compare", "runs/first", "runs/second")
    assert "learner.optimizer.lr  0.0005" in table


@pytest.mark.slow
def test_a_model_of_the_hub_is_fetched_once_and_a_resumed_run_takes_the_same(tmp_path: Path) -> None:
    """The hub is a FAKE behind real HTTP."""
    files = {file.name: file.read_bytes() for file in resolve_model("builtin:running-sum").iterdir()}
    with hub({"org/sums": Repository(files)}) as served:
        commit = served.repositories["org/sums"].commit
        words = ["train", "quickstart", "--learner.model=org/sums", "--critic.model=org/sums"]
        words += ["--run-dir", "run", *SMALL]
        environment = {"HF_ENDPOINT": served.address, "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        printed = sppo_ray(tmp_path, *words, **environment)
        assert "fetching model org/sums from the hub" in printed and commit in printed
        fetched = [request for request in served.requests if request.startswith("GET /org/sums/resolve/")]
        assert len(fetched) == len(set(fetched))

        served.repositories["org/sums"].files["added.txt"] = b"a newer commit"
        served.requests.clear()
        sppo_ray(tmp_path, *words, "--resume", "--loop.steps=3", **environment)
        assert not [request for request in served.requests if "org/sums" in request]
    assert json.loads((tmp_path / "run/job.json").read_text())["models"] == {"org/sums": commit}
