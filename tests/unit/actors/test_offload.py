"""States move to host memory and back without a changed bit. Processes of one gloo rank each."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import multiprocessing

from actors.deepspeed import TrainingEngine, join_group, open_store
from actors.offload import PlainStates, Residency
from sppo_ray.config import LearnerSettings
from sppo_ray.file_digests import digest_folder
from sppo_ray.models.packed import sequence_inputs
from sppo_ray.models.policy import load_policy
from sppo_ray.protocols import Holds
from tests.training_data import save_llama

UPDATES = 3
Kind = tuple[int, str, bool]  # ZeRO stage, dtype, offload_optimizer
TOKENS = [np.arange(start, start + 12) for start in range(UPDATES + 1)]


def engine_of(path: Path, stage: int, dtype: str, on_host: bool) -> TrainingEngine:
    settings = LearnerSettings(model=str(path), dtype=dtype, zero_stage=stage, offload_optimizer=on_host)
    return TrainingEngine(load_policy(path, dtype=dtype), settings, device="cpu", world_size=1)


def update(engine: TrainingEngine, tokens: np.ndarray) -> None:
    logprobs, _ = engine(sequence_inputs(tokens, device="cpu"), 1.0)
    engine.backward(-logprobs.mean())
    engine.step(1e-3)


def logprobs_of(engine: TrainingEngine) -> list[float]:
    with torch.no_grad(), engine.residency.at_least(Holds.WEIGHTS):
        return engine(sequence_inputs(TOKENS[-1], device="cpu"), 1.0)[0].tolist()


def weights_of(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    with engine.residency.at_least(Holds.WEIGHTS):
        return {name: tensor.clone() for name, tensor in engine.parameters()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def rank(path: Path, kinds: list[Kind], pipe: Connection) -> None:
    torch.set_num_threads(1)
    join_group(0, 1, device="cpu", store=open_store("127.0.0.1"))
    pipe.send([compared(path, *kind) for kind in kinds])


def compared(path: Path, *kind: Any) -> dict[str, Any]:
    """Train one engine that stays resident, and one whose states leave between any two calls."""
    staying, moving = engine_of(path, *kind), engine_of(path, *kind)
    found: dict[str, Any] = {"weights": [], "logprobs": []}
    for tokens in TOKENS[:UPDATES]:
        moving.residency.hold(Holds.NOTHING)
        found["logprobs"].append(logprobs_of(moving) == logprobs_of(staying))
        moving.residency.hold(Holds.ALL)
        update(moving, tokens)
        update(staying, tokens)
        moving.residency.hold(Holds.WEIGHTS)
        found["weights"].append(same(weights_of(moving), weights_of(staying)))
    moving.residency.hold(Holds.NOTHING)
    found["held"] = moving.residency.held
    saved = []
    for name, engine in (("moving", moving), ("staying", staying)):
        folder = path / "-".join(map(str, kind)) / name
        folder.mkdir(parents=True)
        engine.save(folder, {})
        saved.append({file: digest.sha256 for file, digest in digest_folder(folder).items()})
    found["same files"] = saved[0] == saved[1] and len(saved[0]) > 0
    for what, call in (("step", lambda: moving.step(1e-3)), ("load", lambda: moving.load(folder))):
        try:
            call()
        except RuntimeError as refused:
            found[what] = str(refused)
    # a resumed engine goes on as the one that was saved
    resumed = engine_of(path, *kind)
    resumed.load(folder)
    moving.residency.hold(Holds.ALL)
    for engine in (resumed, moving, staying):
        update(engine, TOKENS[-1])
    found["resumed"] = same(weights_of(resumed), weights_of(staying))
    found["after the checkpoint"] = same(weights_of(moving), weights_of(staying))
    return found


def test_states_move_without_a_changed_bit(tmp_path: Path) -> None:
    kinds = [
        (0, "float32", False),
        (1, "float32", False),
        (2, "float32", False),
        (2, "bfloat16", False),
        (2, "bfloat16", True),
    ]
    save_llama(tmp_path)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=rank, args=(tmp_path, kinds, there))
    process.start()
    there.close()
    try:
        rows = here.recv()
    finally:
        process.join()
    for kind, found in zip(kinds, rows, strict=True):
        assert found["weights"] == [True] * UPDATES, kind
        assert found["logprobs"] == [True] * UPDATES, kind
        assert found["held"] == Holds.NOTHING
        # a checkpoint is written from host memory
        assert found["same files"], kind
        assert found["resumed"], kind
        assert found["after the checkpoint"], kind
        assert "needs ALL on the device, and the rank holds NOTHING" in found["step"]
        assert "loading a checkpoint needs ALL" in found["load"]


def test_a_state_that_left_is_not_used_by_mistake() -> None:
    """The stand-in for a CPU fills the buffer that a state leaves with NaN."""
    layer = torch.nn.Linear(2, 2)
    expected, old = layer.weight.detach().clone(), layer.weight.data
    engine = SimpleNamespace(module=layer, optimizer=torch.optim.AdamW(layer.parameters()))
    residency = Residency(PlainStates(engine, "cpu"))
    residency.hold(Holds.NOTHING)
    assert old.isnan().all() and torch.equal(layer.weight, expected)
    with residency.at_least(Holds.WEIGHTS):
        assert residency.held == Holds.WEIGHTS
    assert residency.held == Holds.NOTHING
    residency.hold(Holds.ALL)
    assert torch.equal(layer.weight, expected)
