"""A run whose memory cannot suffice is refused before an actor starts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from sppo_ray.launch.cluster import _accelerator
from sppo_ray.launch.train import _check_memory
from sppo_ray.planning.resources import Resources

SHAPE = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return []


def check(
    folder: Path,
    messages: list[str],
    *overrides: str,
    nodes: list[Resources],
    device: str = "cpu",
    is_local: bool = True,
) -> None:
    (folder / "config.json").write_text(json.dumps(SHAPE))
    recorder = SimpleNamespace(message=messages.append)
    config = load_config("quickstart", overrides)
    _check_memory(config, (folder, folder), recorder, device, nodes, is_local=is_local)  # type: ignore[arg-type]


def test_a_cpu_without_the_memory_is_refused(tmp_path: Path, messages: list[str]) -> None:
    nodes = [Resources(2, 0)]
    check(tmp_path, messages, nodes=nodes)
    with pytest.raises(UserError, match=r"needs .* GiB of memory: the nearest change .*kv_cache_gib="):
        check(tmp_path, messages, "--rollout.kv_cache_gib=99999", nodes=nodes)
    # another machine's memory is not known
    check(tmp_path, messages, "--rollout.kv_cache_gib=99999", nodes=nodes, is_local=False)
    assert messages == []


def test_a_gpu_without_the_memory_is_refused(tmp_path: Path, messages: list[str]) -> None:
    shares = ["--device=cuda", "--rollout.gpus_per_worker=1", "--learner.gpus_per_rank=1"]
    shares += ["--critic.gpus_per_rank=1", "--rollout.gpu_memory_utilization=.01"]
    check(tmp_path, messages, *shares, nodes=[Resources(64, 4, "")], device="cuda")
    with pytest.raises(UserError, match=r"KV cache.*--rollout.gpu_memory_utilization="):
        check(tmp_path, messages, *shares, nodes=[Resources(64, 4, "H100")], device="cuda")


def test_a_model_of_another_kind_is_not_refused(tmp_path: Path, messages: list[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | {"model_type": "other"}))
    recorder = SimpleNamespace(message=messages.append)
    paths, nodes = (tmp_path, tmp_path), [Resources(2, 0)]
    _check_memory(load_config("quickstart"), paths, recorder, "cpu", nodes, is_local=True)  # type: ignore[arg-type]
    assert "memory is not checked" in messages[0] and "'other'" in messages[0]


def test_the_kind_of_gpu_that_ray_names() -> None:
    assert _accelerator({"CPU": 8.0, "GPU": 4.0, "accelerator_type:H100": 1.0}) == "H100"
    assert _accelerator({"CPU": 8.0}) == ""
