"""The protocol of a broadcast with STAND-INS for two engines of two devices each: real processes,
real groups (gloo, shared memory), the project's own sender and receiver; a small torch module in
the place of vLLM's model. A real engine is in tests/ray/test_broadcast.py.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.weights.channels import Channel
from actors.weights.chunk_receiver import ChunkReceiver, Incoming
from actors.weights.layout import spans
from actors.weights.sender import ChunkSender
from sppo_ray.protocols import Invitation, Seat, TransferFailed, WeightManifest
from sppo_ray.rollout.seats import broadcast_seats, group_sizes, shared_seats

HOST, TIMEOUT_S, CHUNK_BYTES = "127.0.0.1", 20.0, 250
SHAPES = {"embed": (10, 6), "a.weight": (8, 6), "a.bias": (8,), "b.weight": (6, 8), "norm": (6,)}
FORK = multiprocessing.get_context("fork")


def weights(version: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(version)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


class StandIn:
    """A process that answers commands: `handlers[command](*arguments)`."""

    def __init__(self, make: Callable[[], dict[str, Callable[..., Any]]]) -> None:
        self._pipe, other = FORK.Pipe()
        self.process = FORK.Process(target=_serve, args=(other, make), daemon=True)
        self.process.start()

    def start(self, command: str, *arguments: Any) -> None:
        self._pipe.send((command, arguments))

    def result(self) -> Any:
        if not self._pipe.poll(60):
            raise TimeoutError("a stand-in gave no answer")
        answer = pickle.loads(self._pipe.recv_bytes())
        if isinstance(answer, Exception):
            raise answer
        return answer

    def call(self, command: str, *arguments: Any) -> Any:
        self.start(command, *arguments)
        return self.result()

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


def _serve(pipe: Connection, make: Callable[[], dict[str, Callable[..., Any]]]) -> None:
    torch.set_num_threads(1)
    handlers = make()
    while True:
        command, arguments = pipe.recv()
        try:
            answer = handlers[command](*arguments)
        except Exception as error:  # the test gets it
            answer = error
        pipe.send_bytes(pickle.dumps(answer))  # `send` would leave torch's sockets behind in /tmp


def learner() -> dict[str, Callable[..., Any]]:
    current: dict[str, Tensor] = {}
    sender = ChunkSender(lambda: iter(current.items()), dtype="float32", device="cpu", is_first=True)
    return {
        "announce": lambda version: current.update(weights(version)) or sender.announce(version, CHUNK_BYTES),
        "open": lambda: sender.open_store(HOST, TIMEOUT_S),
        "join": lambda epoch, transport, size: sender.join(epoch, transport, size, TIMEOUT_S),
        "send": sender.send,
        "place": lambda: sender.place,
    }


class Device:
    """One of the two devices of an engine. It holds half of the rows of each parameter."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.receiver = ChunkReceiver(torch.device("cpu"), index)
        self.parameters = {name: torch.zeros(shape).chunk(2)[index].clone() for name, shape in SHAPES.items()}
        self.fault = ""

    def receive(self, manifest: WeightManifest, epoch: int, fault: str = "") -> Any:
        self.fault = fault
        layout = spans(manifest.names, manifest.shapes, manifest.offsets, manifest.dtype, manifest.num_bytes)
        shapes = dict(zip(manifest.names, manifest.shapes, strict=True))
        incoming = Incoming(manifest.version, epoch, shapes, layout, torch.float32)
        if fault:
            self.receiver._channel = Faulty(self.receiver._channel, fault)
        self.receiver.receive(incoming, lambda: None, self.load)
        load = self.receiver.load
        assert load is not None
        return load.ledger.num_loaded(2), load.digest(), self.parameters

    def load(self, named: Iterable[tuple[str, Tensor]]) -> None:
        for name, tensor in named:
            if not (self.fault == "skip a tensor" and name == "a.bias"):
                self.parameters[name].copy_(tensor.chunk(2)[self.index])


class Faulty(Channel):
    """Passes on to the real channel, with a fault at the second chunk."""

    def __init__(self, real: Any, fault: str) -> None:
        super().__init__()
        self._real, self._fault, self._count = real, fault, 0

    def until(self, seconds: float) -> None:
        self._real.until(seconds)

    def broadcast(self, chunk: Tensor) -> None:
        self._count += 1
        if self._count == 2 and self._fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        self._real.broadcast(chunk)
        if self._count == 2 and self._fault == "flip a byte":
            chunk[-1] ^= 1
        if self._count == 2 and self._fault == "old epoch":
            chunk[8] -= 1  # the lowest byte of the epoch

    def close(self) -> None:
        self._real.close()


class Cluster:
    """A learner and two engines with two devices each."""

    def __init__(self, transport: str, timeout_s: float = TIMEOUT_S) -> None:
        self.transport = transport
        self.timeout_s = timeout_s
        self.learner = StandIn(learner)
        self.devices = {
            name: [StandIn(lambda index=index: _handlers(index)) for index in range(2)]
            for name in ("rollout-0", "rollout-1")
        }

    def open(self, epoch: int, names: list[str]) -> dict[str, list[int]]:
        """Form a group and return the ranks of the devices."""
        place = self.learner.call("place")
        places = {name: [place, place] for name in names}
        seats = broadcast_seats(places) if self.transport == "nccl" else shared_seats(places, [place])
        size = group_sizes(seats)[0]
        host, port = self.learner.call("open")
        self.learner.start("join", epoch, self.transport, size)
        for name in names:
            own = tuple(Seat(host, port, seat.rank, size) for seat in seats[name])
            for device in self.devices[name]:
                device.start("join", Invitation(epoch, self.transport, CHUNK_BYTES, self.timeout_s, own))
        assert self.learner.result() == ""
        for name in names:
            assert [device.result() for device in self.devices[name]] == [None, None]
        return {name: [seat.rank for seat in seats[name]] for name in names}

    def sync(
        self, version: int, epoch: int, names: list[str], faults: dict[str, str] | None = None
    ) -> tuple[WeightManifest, str, dict[str, list[Any]]]:
        """Return manifest, the sender's failure, and the answers of the devices."""
        manifest = self.learner.call("announce", version)
        for name in names:
            for device in self.devices[name]:
                device.start("receive", manifest, epoch, (faults or {}).get(name, ""))
        self.learner.start("send", version, epoch, self.timeout_s)
        answers = {name: [_answer(device) for device in self.devices[name]] for name in names}
        return manifest, self.learner.result(), answers

    def close(self) -> None:
        for stand_in in [self.learner, *self.devices["rollout-0"], *self.devices["rollout-1"]]:
            stand_in.kill()


def _handlers(index: int) -> dict[str, Callable[..., Any]]:
    device = Device(index)
    return {"join": device.receiver.join, "receive": device.receive}


def _answer(device: StandIn) -> Any:
    try:
        return device.result()
    except (TransferFailed, EOFError, ConnectionResetError) as failure:
        return failure


@pytest.fixture(params=["nccl", "ipc"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(request.param)
    yield made
    made.close()


BOTH = ["rollout-0", "rollout-1"]


def assert_loaded(manifest: WeightManifest, answers: dict[str, list[Any]]) -> None:
    expected = weights(manifest.version)
    for devices in answers.values():
        for index, (count, digest, parameters) in enumerate(devices):
            assert (count, digest) == (len(SHAPES), manifest.digest)
            for name, tensor in expected.items():
                assert torch.equal(parameters[name], tensor.chunk(2)[index]), name


def test_every_device_gets_every_version_and_the_members_may_change(cluster: Cluster) -> None:
    # learner-0 is rank 0; two engines of two devices are ranks 1 to 4, each once
    assert cluster.open(1, BOTH) == {"rollout-0": [1, 2], "rollout-1": [3, 4]}
    for version in (1, 2):
        manifest, failure, answers = cluster.sync(version, 1, BOTH)
        assert failure == ""
        assert_loaded(manifest, answers)
    assert cluster.open(2, ["rollout-1"]) == {"rollout-1": [1, 2]}
    manifest, failure, answers = cluster.sync(3, 2, ["rollout-1"])
    assert failure == ""
    assert_loaded(manifest, answers)
    # the engine that was left out is still in epoch 1, and refuses a message of epoch 2
    cluster.devices["rollout-0"][0].start("receive", manifest, 2)
    refused = _answer(cluster.devices["rollout-0"][0])
    assert "a message of epoch 2 is refused: this engine is in epoch 1" in str(refused)


def test_each_fault_is_found_where_it_happens(cluster: Cluster) -> None:
    cluster.open(1, BOTH)
    manifest, failure, answers = cluster.sync(1, 1, BOTH, {"rollout-1": "flip a byte"})
    assert failure == ""
    assert_loaded(manifest, {"rollout-0": answers["rollout-0"]})
    assert [digest == manifest.digest for _, digest, _ in answers["rollout-1"]] == [False, False]
    cluster.open(2, BOTH)
    manifest, failure, answers = cluster.sync(2, 2, BOTH, {"rollout-0": "skip a tensor"})
    assert [(count, digest) for count, digest, _ in answers["rollout-0"]] == [(4, manifest.digest)] * 2
    assert_loaded(manifest, {"rollout-1": answers["rollout-1"]})
    cluster.open(3, BOTH)
    manifest, failure, answers = cluster.sync(3, 3, BOTH, {"rollout-0": "old epoch"})
    assert "received epoch 2, expected 3" in str(answers["rollout-0"])


def test_a_dead_engine_ends_the_broadcast_and_a_new_group_goes_on(cluster: Cluster) -> None:
    cluster.open(1, BOTH)
    manifest, failure, answers = cluster.sync(1, 1, BOTH, {"rollout-0": "die"})
    assert "the broadcast broke" in failure
    for answer in answers["rollout-1"]:
        assert isinstance(answer, TransferFailed)
    cluster.open(2, ["rollout-1"])
    manifest, failure, answers = cluster.sync(2, 2, ["rollout-1"])
    assert failure == ""
    assert_loaded(manifest, answers)


def test_an_engine_that_does_not_come_ends_the_broadcast_at_the_deadline() -> None:
    cluster = Cluster("nccl", timeout_s=3.0)
    cluster.open(1, BOTH)
    manifest = cluster.learner.call("announce", 1)
    for device in [*cluster.devices["rollout-0"], cluster.devices["rollout-1"][0]]:
        device.start("receive", manifest, 1)
    os.kill(cluster.devices["rollout-1"][1].process.pid, signal.SIGSTOP)
    cluster.learner.start("send", 1, 1, 3.0)
    failures = [cluster.learner.result(), *(_answer(d) for d in cluster.devices["rollout-0"])]
    assert all("the broadcast broke" in str(failure) for failure in failures)
    cluster.close()
