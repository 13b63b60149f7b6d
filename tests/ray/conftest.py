"""Real engines and rank processes that several test files share, because each takes seconds to
start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from transformers import PreTrainedModel

from tests.ray.engine_models import start_engine, tied_qwen, untied_llama
from tests.ray.rank_groups import RankHost


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


@pytest.fixture(scope="session")
def hosts(ray_cluster: Any) -> Iterator[dict[int, list[Any]]]:
    """Processes for a group of 1 and for groups of 2; a process stays in the process group that it
    joined.
    """
    host_class = ray_cluster.remote(RankHost)
    made = {count: [host_class.options(num_cpus=0.1).remote() for _ in range(count)] for count in (1, 2)}
    yield made
    for handle in [*made[1], *made[2]]:
        ray_cluster.kill(handle)
