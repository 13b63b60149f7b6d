"""Real engines that the tests of generation and of weight transfer share: an engine costs ten seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from transformers import PreTrainedModel

from tests.ray.engine_models import start_engine, tied_qwen, untied_llama


@dataclass(frozen=True)
class Engine:
    actor: Any
    initial: PreTrainedModel  # the weights that it started with


@pytest.fixture(scope="session")
def engines(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """`llama` has a head of its own, `qwen` one that is tied to the embedding."""
    started = {}
    for name, model in (("llama", untied_llama()), ("qwen", tied_qwen())):
        directory = tmp_path_factory.mktemp(name)
        model.save_pretrained(directory)
        started[name] = Engine(start_engine(f"rollout-{name}", directory), model)
    ray_cluster.get([engine.actor.ready.remote() for engine in started.values()], timeout=240)
    yield started
    for engine in started.values():
        ray_cluster.kill(engine.actor)


@pytest.fixture
def llama(engines: dict[str, Engine]) -> Engine:
    return engines["llama"]


@pytest.fixture
def qwen(engines: dict[str, Engine]) -> Engine:
    return engines["qwen"]
