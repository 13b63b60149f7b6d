"""DeepSpeed behind the few verbs that learner and critic need: forward, backward, step, parameters, save, load.

Gradients accumulate over any number of `backward` calls and are reduced and applied by `step`
(`managed_gradient_accumulation: false`), so that a minibatch may have as many micro-batches as its lengths ask for.
A step with a non-finite gradient is skipped on all ranks alike.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import TCPStore
from torch.distributed.constants import default_pg_timeout

from sppo_ray.config import ModelSettings, OptimizerSettings
from sppo_ray.errors import UserError

# DeepSpeed picks its accelerator when it is imported, so every import of it below comes after `join_group`.
_TAG = "state"
_MAX_REDUCE_BUCKET = 50_000_000  # elements reduced at once; DeepSpeed's default of 5e8 would allocate 2 GB for any model


@dataclass(frozen=True, slots=True)
class StepOutcome:
    grad_norm: float  # global, before clipping; not finite when skipped
    skipped: bool  # the gradient was not finite and the weights are as they were


def open_store(address: str) -> TCPStore:
    """What a process group meets at, served by this process on a port that the system picks and nobody else can take."""
    return TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=default_pg_timeout)


def reach_store(address: str, port: int) -> TCPStore:
    """The store that another process serves."""
    return TCPStore(address, port, timeout=default_pg_timeout)


def join_group(rank: int, world_size: int, *, device: str, store: TCPStore) -> None:
    """Make this process rank `rank` of a process group: gloo on "cpu", nccl on "cuda".

    A process belongs to one group until it ends; a second call changes nothing.
    """
    if torch.distributed.is_initialized():
        return
    # Ray shows each actor only its own GPU, which is therefore always number 0.
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": store.host, "MASTER_PORT": str(store.port), "DS_ACCELERATOR": device}
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    import deepspeed

    deepspeed.utils.logger.setLevel("ERROR")
    # DeepSpeed's ZeRO-3 calls collectives by names that torch renamed, and would say so at every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # The shared-memory op serves tensor-parallel inference only, and compiling it takes a minute on a fresh machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)


def learning_rate(optimizer: OptimizerSettings, update: int, total_updates: int) -> float:
    """The learning rate of update number `update`, counted from 0.

    Warm-up: (update + 1) / lr_warmup_steps of lr. Then constant, or a straight line from lr to
    final_lr_fraction * lr at the last update, number total_updates - 1.
    """
    warmup = optimizer.lr_warmup_steps
    if update < warmup:
        return optimizer.lr * (update + 1) / warmup
    if optimizer.schedule == "constant":
        return optimizer.lr
    progress = min(1.0, (update - warmup) / max(1, total_updates - 1 - warmup))
    return optimizer.lr * (1.0 - progress * (1.0 - optimizer.final_lr_fraction))


def effective_stage(settings: ModelSettings) -> int:
    """bfloat16 runs stage 0 as stage 2, whose gradients accumulate in float32; stage 0 would add them up in bfloat16."""
    return settings.zero_stage or 2 if settings.dtype == "bfloat16" else settings.zero_stage


def deepspeed_config(settings: ModelSettings, num_parameters: int) -> dict[str, Any]:
    """What DeepSpeed is told; everything else of it stays at its default."""
    stage = effective_stage(settings)
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": stage >= 2,
        "reduce_bucket_size": min(num_parameters, _MAX_REDUCE_BUCKET),
    }
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if stage == 0 else settings.optimizer.grad_clip or 0.0,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if settings.dtype == "bfloat16":
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config


class GuardedAdamW(torch.optim.AdamW):
    """AdamW for stage 0, which has no ZeRO optimizer round it to measure, clip and check the gradient.

    DeepSpeed reads `overflow` and `_global_grad_norm` after each step. The gradients are already the average over
    the ranks, so that all ranks decide alike.
    """

    def __init__(self, parameters: Any, *, max_norm: float | None, **options: Any) -> None:
        super().__init__(parameters, **options)
        self.max_norm = max_norm
        self.overflow = False
        self._global_grad_norm = 0.0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        self._global_grad_norm = float(norm)
        self.overflow = not math.isfinite(self._global_grad_norm)
        if self.overflow:
            return
        if self.max_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.max_norm, norm)
        super().step()


class TrainingEngine:
    """One rank's model and optimizer. `module.model` is the Transformers model inside."""

    def __init__(self, module: nn.Module, settings: ModelSettings, *, device: str, world_size: int) -> None:
        """Call on every rank of the group (a collective). The weights of rank 0 win."""
        import deepspeed

        self.device = device
        self.world_size = world_size
        self.stage = effective_stage(settings)
        self.progress = 0  # forwards, backwards, steps and parameters so far: what a stuck process does not do
        self.num_parameters = sum(p.numel() for p in module.parameters())
        self._engine, *_ = deepspeed.initialize(
            model=module.to(device),
            optimizer=_optimizer(module, settings, self.stage),
            config=deepspeed_config(settings, self.num_parameters),
            dist_init_required=False,
        )
        self._engine.checkpoint_engine.load = load_data  # DeepSpeed's own unpickles whatever a file holds

    @property
    def model(self) -> Any:
        return self._engine.module.model

    def __call__(self, *inputs: Any) -> Any:
        self.progress += 1
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of this rank's share of the global loss (shares add up over ranks)."""
        self.progress += 1
        # DeepSpeed averages over the ranks where the shares are to be added.
        self._engine.backward(loss * self.world_size)

    def step(self, lr: float) -> StepOutcome:
        """Reduce, clip and apply what was accumulated since the last step. A collective."""
        self.progress += 1
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return StepOutcome(grad_norm=float(self._engine.get_global_grad_norm()), skipped=not self._engine.was_step_applied())

    def reduce(self, sums: Mapping[str, Tensor], maxima: Mapping[str, Tensor]) -> dict[str, float]:
        """Add up and take the maximum over the ranks, which all hand in the same names in the same order. A collective."""
        return self._reduce(sums, torch.distributed.ReduceOp.SUM) | self._reduce(maxima, torch.distributed.ReduceOp.MAX)

    def _reduce(self, values: Mapping[str, Tensor], operation: Any) -> dict[str, float]:
        if not values:
            return {}
        stacked = torch.stack(list(values.values())).double()
        if self.world_size > 1:
            torch.distributed.all_reduce(stacked, op=operation)
        return dict(zip(values, stacked.tolist(), strict=True))

    def maximum(self, number: int) -> int:
        """The largest of the ranks' numbers. A collective."""
        highest = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
        return int(highest)

    def union(self, numbers: set[int]) -> set[int]:
        """What any rank has. A collective."""
        parts: list[set[int]] = [set()] * self.world_size
        torch.distributed.all_gather_object(parts, numbers)
        return set().union(*parts)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter of the Transformers model with its Transformers name; a tied one comes once.

        A collective under ZeRO-3: run it to its end on every rank. A tensor is whole only until the next is asked for.
        """
        import deepspeed

        for name, parameter in self.model.named_parameters():
            self.progress += 1
            with deepspeed.zero.GatheredParameters([parameter]) if self.stage == 3 else nullcontext():
                yield name, parameter.detach()

    def save(self, directory: Path, client_state: Mapping[str, Any]) -> None:
        """Weights, optimizer and `client_state` below `directory`. A collective."""
        self._engine.save_checkpoint(str(directory), tag=_TAG, client_state=dict(client_state), exclude_frozen_parameters=False)

    def load(self, directory: Path) -> dict[str, Any]:
        """The inverse of `save` on as many ranks; returns rank 0's `client_state`. A collective.

        Raises:
            UserError: no checkpoint of this model and rank count there, or one that holds anything but data.
        """
        path, client_state = self._engine.load_checkpoint(str(directory), tag=_TAG)
        if path is None:
            raise UserError(f"checkpoint {directory}: no DeepSpeed state for this model with {self.world_size} ranks in it")
        return client_state

    def close(self) -> None:
        self._engine.destroy()


def load_data(path: str, map_location: Any = None) -> Any:
    """A file of a DeepSpeed checkpoint: tensors, plain values, and the few classes of its own that DeepSpeed writes.

    A manifest tells damage, not malice: who can change a checkpoint can change its manifest too, and a pickle can run code.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except UnpicklingError as error:
            raise UserError(
                f"checkpoint {path}: holds something other than data, which is not read because it could run code "
                f"({str(error).splitlines()[0]}): restore it from a copy you trust, or resume from an earlier checkpoint"
            ) from None


def _optimizer(module: nn.Module, settings: ModelSettings, stage: int) -> torch.optim.Optimizer:
    options = settings.optimizer
    common: dict[str, Any] = {
        "lr": options.lr,
        "betas": options.betas,
        "eps": options.eps,
        "weight_decay": options.weight_decay,
        "fused": True,
    }
    if stage == 0:
        return GuardedAdamW(module.parameters(), max_norm=options.grad_clip, **common)
    return torch.optim.AdamW(module.parameters(), **common)
