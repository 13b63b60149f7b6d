"""Base class of learner ranks and critic ranks: processes of a DeepSpeed group."""

from __future__ import annotations

import os
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
import transformers
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from torch.distributed import TCPStore
from transformers import GenerationConfig

from actors.deepspeed import (
    TrainingEngine,
    ZeroSharding,
    effective_stage,
    join_group,
    learning_rate,
    load_data,
    open_store,
    reach_store,
)
from actors.memory import peak_bytes
from actors.offload import with_resident
from sppo_ray.config import ModelSettings
from sppo_ray.errors import UserError
from sppo_ray.file_digests import FileDigest, digest_folder
from sppo_ray.models.bundled import weights_digest
from sppo_ray.models.lora import add_adapters, save_adapter
from sppo_ray.models.tokenizers import load_tokenizer
from sppo_ray.protocols import Holds


class TrainingRank(ABC):
    """Rank `rank` of `world_size` processes that train one model together.

    Order of calls: `address` on rank 0, `setup` on all ranks, then the other methods, `close`. A
    collective must be called on all ranks concurrently, with equal arguments except for the shard.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        settings: ModelSettings,
        *,
        model_path: str,
        total_updates: int,
        seed: int,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.settings = settings
        self.model_path = model_path
        self.total_updates = total_updates
        self.seed = seed
        self.device = "cuda" if settings.gpus_per_rank > 0 else "cpu"
        # number of updates, including skipped ones: the position in the schedule
        self.num_updates = 0
        self.num_skipped = 0
        self._engine: TrainingEngine | None = None
        self._store: TCPStore | None = None  # rank 0's

    @property
    def engine(self) -> TrainingEngine:
        if self._engine is None:
            raise RuntimeError("setup() comes first")
        return self._engine

    def address(self) -> tuple[str, int]:
        """Start the store of the process group and return (IP of this node, port). Rank 0 only."""
        self._store = open_store(ray.util.get_node_ip_address())
        return self._store.host, self._store.port

    def setup(self, master_addr: str, master_port: int) -> dict[str, Any]:
        """Join the group at rank 0's `address`, load the model, start DeepSpeed. A collective.

        Returns:
            {"parameters": of the whole model, "trained": number of trained ones, "device": "cpu" |
            "cuda", "zero_stage": the effective stage}.

        Raises:
            UserError: the model does not load.
        """
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(max(1, int(self.settings.cpus_per_rank)))
        _seed_everything(self.seed)
        _name_network_interface(master_addr)
        store = self._store or reach_store(master_addr, master_port)
        join_group(self.rank, self.world_size, device=self.device, store=store)
        module = self._load_model()
        if self.settings.lora is not None:
            add_adapters(module.model, self.settings.lora, seed=self.seed, directory=self.model_path)
        self._engine = TrainingEngine(module, self.settings, device=self.device, world_size=self.world_size)
        return {
            "parameters": self.engine.num_parameters,
            "trained": self.engine.num_trained,
            "device": self.device,
            "zero_stage": self.engine.stage,
        }

    def save(self, directory: str | Path) -> dict[str, FileDigest]:
        """Write trained weights, optimizer, schedule position and all random states to `directory`.
        A collective. Returns the digests of this rank's part of the files.
        """
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        counters = {"num_updates": self.num_updates, "num_skipped": self.num_skipped}
        self.engine.save(path, client_state=counters | {"base": self._base} | self._extra_state())
        torch.save(_random_state(self.device), path / f"random-{self.rank}.pt")
        torch.distributed.barrier()  # wait until all ranks have written their files
        return digest_folder(path, part=self.rank, parts=self.world_size)

    def load(self, directory: str | Path) -> None:
        """Restore the state that `save` wrote. A collective.

        Raises:
            UserError: `directory` has no state of this model and number of ranks, or its trained
                weights belong to other frozen ones.
        """
        random_state = Path(directory) / f"random-{self.rank}.pt"
        if not random_state.is_file():
            raise UserError(
                f"checkpoint {directory}: no state of rank {self.rank} in it; resume with the rank count it "
                "was saved with"
            )
        state = self.engine.load(Path(directory))
        if state.get("base") != self._base:
            what = "weights" if self.settings.lora is None else "LoRA adapters"
            raise UserError(
                f"checkpoint {directory}: its {what} were trained on other weights than those in "
                f"{self.model_path}: resume with the model that the run started from"
            )
        self.num_updates, self.num_skipped = state["num_updates"], state["num_skipped"]
        self._restore_extra_state(state)
        _set_random_state(load_data(str(random_state)), self.device)

    def hold(self, wanted: Holds) -> None:
        """Move states between device and host memory until this rank holds `wanted`."""
        self.engine.residency.hold(wanted)

    @with_resident(Holds.WEIGHTS)
    def export(self, directory: str | Path, tokenizer_source: str | Path) -> None:
        """Write a plain Transformers checkpoint atomically, on rank 0. A collective.

        With LoRA it holds the merged weights, and the adapter in PEFT's format in its subfolder
        `adapter`. `directory` must not exist, or hold an earlier export, which is replaced.
        """
        tensors = {name: self._exported(tensor) for name, tensor in self.engine.parameters()}
        lora, trained = self.settings.lora, {}
        if lora is not None:
            trained = {name: self._exported(tensor) for name, tensor in self.engine.trained_parameters()}
        if self.rank == 0:
            with _replacing(Path(directory)) as partial:
                save_torch_state_dict(tensors, partial)
                if lora is not None:
                    save_adapter(partial / "adapter", trained, lora, base=self.model_path)
                self._write_config(partial, load_tokenizer(tokenizer_source))

    def close(self) -> None:
        """Release the model and its optimizer. The process group ends with the process."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def ping(self) -> dict[str, Any]:
        """Return {"pid", "progress"}; "progress" grows with the work. A separate thread answers it
        during other calls.
        """
        return {"pid": os.getpid(), "progress": 0 if self._engine is None else self._engine.progress}

    def memory(self) -> int:
        """Return the peak bytes of this process (`actors.memory`)."""
        return peak_bytes(self.device)

    def _placement(self) -> dict[str, Any]:
        """Return where the weights are loaded to, for the functions of `models`."""
        sharding = ZeroSharding(self.settings) if effective_stage(self.settings) == 3 else None
        return {"device": self.device, "sharding": sharding}

    def _apply_gradient(self, sums: Mapping[str, Tensor], maxima: Mapping[str, Tensor]) -> dict[str, float]:
        """Do the optimizer step after the backward passes and return the metrics. A collective.

        The metrics are `sums` and `maxima`, reduced over the ranks, and grad_norm (before
        clipping), lr, skipped and skipped_total.
        """
        lr = learning_rate(self.settings.optimizer, self.num_updates, self.total_updates)
        outcome = self.engine.step(lr)
        self.num_updates += 1
        self.num_skipped += int(outcome.skipped)
        return self.engine.reduce(sums, maxima) | {
            "grad_norm": outcome.grad_norm,
            "lr": lr,
            "skipped": float(outcome.skipped),
            "skipped_total": float(self.num_skipped),
        }

    def _exported(self, tensor: Tensor) -> Tensor:
        # Only rank 0 writes. The others take part in gathering the weights.
        return tensor.to("cpu", copy=True).contiguous() if self.rank == 0 else torch.empty(0)

    @cached_property
    def _base(self) -> str | None:
        """Digest of the frozen weights, which a checkpoint of trained ones belongs to; None without
        frozen weights.
        """
        return weights_digest(Path(self.model_path)) if self.engine.has_frozen else None

    @abstractmethod
    def _load_model(self) -> nn.Module:
        """Load the module; its `.model` is a Transformers model."""

    @abstractmethod
    def _write_config(self, directory: Path, tokenizer: Any) -> None:
        """Write the files of an export except the weights: config.json, tokenizer, ..."""

    def _extra_state(self) -> dict[str, Any]:
        """Return further state for a checkpoint, equal on all ranks. A collective."""
        return {}

    def _restore_extra_state(self, state: dict[str, Any]) -> None:  # noqa: B027 - a rank without extra state has nothing to do
        pass


def copy_generation_config(source: str | Path, directory: Path) -> None:
    if (Path(source) / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(source).save_pretrained(directory)


@contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def _name_network_interface(master_addr: str) -> None:
    """Set gloo's network interface to the one that reaches the other ranks.

    By default gloo takes the interface that the host name resolves to.
    """
    own = ray.util.get_node_ip_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(entry.address in (own, master_addr) for entry in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _random_state(device: str) -> dict[str, Any]:
    """Return the random states of torch, NumPy and Python as types that `torch.load` reads
    safely.
    """
    kind, keys, *rest = np.random.get_state()
    numpy = (kind, torch.from_numpy(keys.astype(np.int64)), *rest)
    state = {"cpu": torch.get_rng_state(), "numpy": numpy, "python": random.getstate()}
    return state | {"cuda": torch.cuda.get_rng_state()} if device == "cuda" else state


def _set_random_state(state: dict[str, Any], device: str) -> None:
    torch.set_rng_state(state["cpu"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    if device == "cuda":
        torch.cuda.set_rng_state(state["cuda"])
