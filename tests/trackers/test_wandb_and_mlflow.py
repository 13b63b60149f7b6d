"""W&B (offline) and MLflow (a local store) for real, in the environment of `make test-trackers`:
what a run and its resumption leave there.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

wandb = pytest.importorskip("wandb", reason="make test-trackers")
mlflow = pytest.importorskip("mlflow", reason="make test-trackers")

from sppo_ray.config.loading import load_config  # noqa: E402
from sppo_ray.errors import UserError  # noqa: E402
from sppo_ray.rundir.layout import RunDir  # noqa: E402
from sppo_ray.rundir.metrics import read_metrics  # noqa: E402
from sppo_ray.rundir.tracked import read_tracked  # noqa: E402
from sppo_ray.tracking import open_trackers  # noqa: E402
from sppo_ray.trainer.checkpoint import TrainerState  # noqa: E402
from tests.unit.trainer.test_loop import Run  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
_BLOCK = 32 * 1024


@pytest.fixture(autouse=True)
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    wandb.teardown()  # W&B keeps the settings of the first run of a process


def test_wandb_gets_every_finite_metric_and_the_settings(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=3", "--logging.trackers=[wandb]", "--logging.project=sums")
    trained(run)
    (segment,) = wandb_runs(run.path)
    assert segment["project"] == "sums" and segment["name"] == "run"
    assert segment["run_id"] == read_tracked(run.path)["wandb"]
    assert segment["config"]["data.prompts_per_step"] == "4"
    for row in read_metrics(run.path):
        figures = finite(row)
        written = segment["history"][row["step"]]
        assert {name: written[name] for name in figures} == pytest.approx(figures, rel=1e-6)


def test_a_resumed_run_is_the_same_run_in_both(tmp_path: Path) -> None:
    """The same process twice over one run directory, as a start with --resume does it."""
    words = ("--loop.steps=2", "--logging.trackers=[wandb,mlflow]")
    run = Run(tmp_path, *words)
    state = trained(run)
    before = read_tracked(run.path)
    longer = Run(tmp_path, "--loop.steps=4", "--logging.trackers=[wandb,mlflow]")
    trained(longer, state)
    assert read_tracked(run.path) == before and before.keys() == {"wandb", "mlflow"}

    first, second = wandb_runs(run.path)
    assert first["run_id"] == second["run_id"] == before["wandb"]
    assert (max(first["history"]), max(second["history"])) == (2, 4)

    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'sppo-ray'")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.run_id == before["mlflow"]
    assert (tracked.info.run_name, tracked.info.status) == ("run", "FINISHED")
    assert tracked.data.params["loop.steps"] == "2"  # of the first start: MLflow changes no parameter
    history = client.get_metric_history(tracked.info.run_id, "reward/mean")
    wanted = {row["step"]: row["reward/mean"] for row in read_metrics(run.path) if "reward/mean" in row}
    assert {point.step: point.value for point in history} == pytest.approx(wanted)
    assert len(wanted) == 4


def test_names_that_mlflow_does_not_allow_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tracker,) = trackers(tmp_path / "run", "mlflow")
    tracker.write(1, {"eval/pass@4": 0.5, "eval/a b(c)/accuracy": 0.25})
    tracker.close()
    data = mlflow.MlflowClient().get_run(read_tracked(tmp_path / "run")["mlflow"]).data
    assert data.metrics == {"eval/pass_at_4": 0.5, "eval/a b_c_/accuracy": 0.25}


def test_a_server_that_is_away_stops_a_new_run_and_not_a_resumed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="logging.trackers: mlflow does not start .*take it out"):
        trackers(tmp_path / "run", "mlflow")
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1}\n')
    said: list[str] = []
    (tracker,) = trackers(tmp_path / "run", "mlflow", said)
    tracker.write(2, {"a": 1.0})
    tracker.close()
    assert len(said) == 1 and said[0].endswith("; the run continues without it")


def test_wandb_without_a_login_stops_a_new_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WANDB_MODE": "online", "HOME": str(tmp_path), "NETRC": str(tmp_path / "n")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="logging.trackers: wandb does not start .*API key"):
        trackers(tmp_path / "run", "wandb")


def test_the_lock_is_closed_on_top_of_the_other() -> None:
    below, lock = (pins(name) for name in ("cpu.lock", "trackers.lock"))
    for name in lock:
        assert metadata.version(name) == lock[name]
        for wanted in map(Requirement, metadata.requires(name) or ()):
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                version = (below | lock)[canonicalize_name(wanted.name)]
                assert wanted.specifier.contains(version, prereleases=True), f"{name} wants {wanted}"


# ------------------------------------------------------------------------------------------- inside


def trained(run: Run, state: TrainerState | None = None) -> TrainerState:
    """Without the time limit of `Run.train`: trackers start slowly on a busy machine."""
    return asyncio.run(run._train(state or TrainerState.initial()))


def trackers(path: Path, name: str, said: list[str] | None = None) -> list[Any]:
    config = load_config("quickstart", [f"--logging.trackers={name}", "--logging.tensorboard=false"])
    return open_trackers(config, RunDir(path), [].append if said is None else said.append)


def pins(name: str) -> dict[str, str]:
    lines = (REPOSITORY / "requirements" / name).read_text(encoding="utf-8").splitlines()
    found = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(package): version for package, version in found}


def finite(row: dict[str, Any]) -> dict[str, float]:
    return {
        name.replace("@", "_at_"): value
        for name, value in row.items()
        if name not in ("step", "time", "nonfinite") and value is not None
    }


def wandb_runs(run_dir: Path) -> list[dict[str, Any]]:
    """What W&B wrote offline, one entry a start, in order of time."""
    wandb.teardown()  # ends its service, which writes the files after a run has finished
    files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    return [_read(file) for file in files]


def _read(file: Path) -> dict[str, Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, Any] = {"history": {}, "config": {}}
    for data in _records(file.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "run":
            run = record.run
            found |= {"run_id": run.run_id, "project": run.project, "name": run.display_name}
            found["config"] |= {item.key: item.value_json for item in run.config.update}
        elif record.WhichOneof("record_type") == "config":
            found["config"] |= {item.key: item.value_json for item in record.config.update}
        elif record.WhichOneof("record_type") == "history":
            items = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            step = record.history.step.num or items.get("_step", 0)
            found["history"].setdefault(step, {}).update(items)
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB with pieces of (checksum, length, kind)."""
    at, whole = 7, b""  # W&B's own header comes first
    while at + 7 <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:
            return
        whole = (b"" if kind in (1, 2) else whole) + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
