"""A real engine of two tensor-parallel workers receives weights in chunks, over gloo and out of
shared memory. The sender is the learner's own, in the process of the test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.rollout import RolloutWorker, rollout_env
from actors.weights.sender import ChunkSender
from sppo_ray.protocols import Invitation, PublishedWeights, Seat, TransferFailed
from sppo_ray.rollout.weight_sync import ProbeTolerance, verify_receipt
from tests.ray.engine_models import (
    PROBE,
    SETTINGS,
    exact_logprobs,
    generate,
    perturbed,
    publish,
    pull,
    requests,
    tied_qwen,
)

pytestmark = pytest.mark.slow  # the engine starts two more processes, which import vLLM

TP, CHUNK_BYTES, TIMEOUT_S = 2, 20_000, 60.0
TOLERANCE = ProbeTolerance.for_dtype("float32")


class Sender:
    """The learner's sender, and an engine of TP devices."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.model = tied_qwen()
        self.chunks = ChunkSender(self._parameters, dtype="float32", device="cpu", is_first=True)
        self.epoch = 0

    def _parameters(self) -> Iterator[tuple[str, Any]]:
        return ((name, parameter.detach()) for name, parameter in self.model.named_parameters())

    def open(self, transport: str) -> None:
        self.epoch += 1
        host, port = self.chunks.open_store("127.0.0.1", TIMEOUT_S)
        seats = tuple(Seat(host, port, 1 + index, 1 + TP) for index in range(TP))
        joining = self.engine.join_group.remote(
            Invitation(self.epoch, transport, CHUNK_BYTES, TIMEOUT_S, seats)
        )
        assert self.chunks.join(self.epoch, transport, 1 + TP, TIMEOUT_S) == ""
        assert ray.get(joining, timeout=2 * TIMEOUT_S) == ""

    def sync(self, version: int, epoch: int | None = None) -> tuple[PublishedWeights, str, Any]:
        """Return what is published, the sender's failure, and the engine's answer."""
        self.model = perturbed(tied_qwen(), version)
        manifest = self.chunks.announce(version, CHUNK_BYTES)
        assert manifest is not None
        probe = tuple(exact_logprobs(self.model, PROBE))
        published = PublishedWeights(manifest, None, PROBE, probe)
        asked = self.epoch if epoch is None else epoch
        receiving = self.engine.receive_weights.remote(manifest, asked)
        failure = self.chunks.send(version, self.epoch, TIMEOUT_S)
        answer = ray.get(receiving, timeout=2 * TIMEOUT_S)
        if not answer:
            answer = ray.get(self.engine.serve_received.remote(version, PROBE), timeout=TIMEOUT_S)
        return published, failure, answer


@pytest.fixture(scope="module")
def sender(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sender]:
    directory: Path = tmp_path_factory.mktemp("tp2")
    tied_qwen().save_pretrained(directory)
    settings = SETTINGS.model_copy(update={"tensor_parallel_size": TP, "kv_cache_gib": 0.05})
    engine = (
        ray.remote(RolloutWorker)
        .options(num_cpus=0.1, runtime_env={"env_vars": rollout_env(settings, "cpu")})
        .remote(
            "rollout-tp",
            settings,
            model_path=str(directory),
            max_model_len=128,
            stop_token_ids=(),
            seed=0,
            device="cpu",
        )
    )
    ray_cluster.get(engine.ready.remote(), timeout=500)
    yield Sender(engine)
    ray_cluster.get(engine.close.remote())
    ray_cluster.kill(engine)


@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_two_versions_reach_both_devices_with_their_proof(sender: Sender, transport: str) -> None:
    sender.open(transport)
    for version in (2 * sender.epoch, 2 * sender.epoch + 1):
        published, failure, receipt = sender.sync(version)
        assert failure == ""
        assert len(sender.chunks._chunks) > 5
        assert verify_receipt(published, receipt, TOLERANCE) < 1e-4
        # the buffer of the same version holds the same weights
        flat = publish(sender.model, version)
        assert receipt.probe_logprobs == pull(sender.engine, flat).probe_logprobs


def _cut_at(chunk: int, real: Callable[[Any], None]) -> Callable[[Any], None]:
    left = [chunk]

    def broadcast(data: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise TransferFailed("cut by the test")
        real(data)

    return broadcast


def test_a_broadcast_that_breaks_midway_leaves_an_engine_that_serves_only_after_a_flat_pull(
    sender: Sender,
) -> None:
    sender.open("nccl")
    channel: Any = sender.chunks._channel
    channel.broadcast = _cut_at(4, channel.broadcast)
    _, failure, answer = sender.sync(90)
    assert failure == "cut by the test"
    assert "the broadcast broke" in answer
    (request,) = requests(1)
    # partly loaded: requests wait
    served = ray.remote(_generate).remote(sender.engine, [request])
    done, _ = ray.wait([served], timeout=3)
    assert not done
    flat = publish(sender.model, 90)
    assert verify_receipt(flat, pull(sender.engine, flat), TOLERANCE) < 1e-4
    (trajectory,) = ray.get(served, timeout=60)
    assert (trajectory.policy_version, trajectory.policy_version_end) == (90, 90)


def _generate(engine: Any, batch: Any) -> Any:
    return generate(engine, batch)


def test_a_message_of_another_epoch_is_refused_and_changes_nothing(sender: Sender) -> None:
    sender.open("nccl")
    served, _, _ = sender.sync(100)
    answer = ray.get(
        sender.engine.receive_weights.remote(
            dataclasses.replace(served.manifest, version=101), sender.epoch - 1
        ),
        timeout=TIMEOUT_S,
    )
    assert "is refused: this engine is in epoch" in answer
    assert ray.get(sender.engine.ping.remote())["version"] == 100
