"""Wraps DeepSpeed for learner and critic: forward, backward, step, parameters, save, load.

Any number of `backward` calls accumulate gradients, and `step` reduces and applies them
(`managed_gradient_accumulation: false`). So the number of micro-batches of a minibatch may vary. A
step with a non-finite gradient is skipped on all ranks.
"""

from __future__ import annotations

import copyreg
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import TCPStore
from torch.distributed.constants import default_pg_timeout

from actors.offload import PlainStates, Residency, ZeroStates
from sppo_ray.config import ModelSettings, OptimizerSettings
from sppo_ray.errors import UserError
from sppo_ray.models.lora import whole_parameters
from sppo_ray.protocols import Holds

# DeepSpeed selects its accelerator on import, so it must be imported after `join_group` has set it.
_TAG = "state"
# elements per reduction; DeepSpeed's default of 5e8 allocates 2 GB for every model
_MAX_REDUCE_BUCKET = 50_000_000


@dataclass(frozen=True, slots=True)
class StepOutcome:
    grad_norm: float  # global, before clipping; not finite when skipped
    skipped: bool  # the gradient was not finite and the weights are unchanged


def open_store(address: str) -> TCPStore:
    """Serve the store of a process group from this process, on a free port of the system's choice.

    The store keeps the port open, so no other process can take it.
    """
    return TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=default_pg_timeout)


def reach_store(address: str, port: int) -> TCPStore:
    """Connect to the store of another process."""
    return TCPStore(address, port, timeout=default_pg_timeout)


def join_group(rank: int, world_size: int, *, device: str, store: TCPStore) -> None:
    """Make this process rank `rank` of a process group: gloo on "cpu", nccl on "cuda".

    A process belongs to one group until it ends. A second call has no effect.
    """
    if torch.distributed.is_initialized():
        return
    # Each actor sees only its own GPU, which is therefore number 0.
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": store.host, "MASTER_PORT": str(store.port), "DS_ACCELERATOR": device}
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    import deepspeed

    deepspeed.utils.logger.setLevel("ERROR")
    # DeepSpeed's ZeRO-3 uses deprecated names of collectives, with a warning at every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # The shared-memory op is only for tensor-parallel inference and takes a minute to compile.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)


def learning_rate(optimizer: OptimizerSettings, update: int, total_updates: int) -> float:
    """Return the learning rate of update number `update`, counted from 0.

    During warm-up it is lr * (update + 1) / lr_warmup_steps. Then it is constant, or linear from lr
    to final_lr_fraction * lr at the last update, number total_updates - 1.
    """
    warmup = optimizer.lr_warmup_steps
    if update < warmup:
        return optimizer.lr * (update + 1) / warmup
    if optimizer.schedule == "constant":
        return optimizer.lr
    progress = min(1.0, (update - warmup) / max(1, total_updates - 1 - warmup))
    return optimizer.lr * (1.0 - progress * (1.0 - optimizer.final_lr_fraction))


def effective_stage(settings: ModelSettings) -> int:
    """Return the ZeRO stage that is used. With bfloat16, stage 0 becomes stage 2, because stage 0
    accumulates gradients in bfloat16 and stage 2 in float32.
    """
    return settings.zero_stage or 2 if settings.dtype == "bfloat16" else settings.zero_stage


def deepspeed_config(settings: ModelSettings, num_parameters: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for that number of trained parameters; all other options
    keep their defaults.
    """
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
    """AdamW that measures, clips and checks the gradient. Stage 0 has no ZeRO optimizer to do this.

    DeepSpeed reads `overflow` and `_global_grad_norm` after each step. The gradients are already
    averaged over the ranks, so all ranks skip the same steps.
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


class ZeroSharding:
    """Spreads the parameters of a model over the ranks while it is constructed, for ZeRO-3."""

    def __init__(self, settings: ModelSettings) -> None:
        self._config = deepspeed_config(settings, num_parameters=1)

    def constructing(self) -> AbstractContextManager[Any]:
        import deepspeed

        # By default tensors that the constructors make are cast to the parameters' type, and rotary
        # frequencies in bfloat16 are wrong in the third digit.
        return deepspeed.zero.Init(config_dict_or_path=self._config, tensor_overrides=set())

    @contextmanager
    def filling(self, parameter: Tensor) -> Iterator[bool]:
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            yield torch.distributed.get_rank() == 0


class TrainingEngine:
    """Model and optimizer of one rank. `module.model` is the Transformers model.

    Frozen parameters are neither optimized nor saved.
    """

    def __init__(self, module: nn.Module, settings: ModelSettings, *, device: str, world_size: int) -> None:
        """Create the engine with the weights of rank 0 on all ranks. A collective."""
        import deepspeed

        self.device = device
        self.world_size = world_size
        self.stage = effective_stage(settings)
        # counts forward and backward passes, steps and parameters; a stuck process stops counting
        self.progress = 0
        self.num_parameters = _count([whole.weight for whole in whole_parameters(module.model)])
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.num_trained = _count(trained)
        self.has_frozen = self.num_trained < _count(module.parameters())
        if self.has_frozen:
            module.register_state_dict_post_hook(_leave_out_frozen)
        self._engine, *_ = deepspeed.initialize(
            model=module.to(device),
            optimizer=_optimizer(trained, settings, self.stage),
            config=deepspeed_config(settings, self.num_trained),
            dist_init_required=False,
        )
        mover = ZeroStates(self._engine) if self.stage else PlainStates(self._engine, device)
        self.residency = Residency(mover)
        # DeepSpeed's own function unpickles any object
        self._engine.checkpoint_engine.load = load_data

    @property
    def model(self) -> Any:
        return self._engine.module.model

    def __call__(self, *inputs: Any) -> Any:
        self.progress += 1
        self.residency.require(Holds.WEIGHTS, "a forward pass")
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of this rank's part of the global loss.

        The global loss is the sum of `loss` over all ranks and calls.
        """
        self.progress += 1
        # DeepSpeed averages over the ranks, but the parts must be added.
        self._engine.backward(loss * self.world_size)

    def step(self, lr: float) -> StepOutcome:
        """Reduce, clip and apply the accumulated gradient. A collective."""
        self.progress += 1
        self.residency.require(Holds.ALL, "an optimizer step")
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return StepOutcome(
            grad_norm=float(self._engine.get_global_grad_norm()), skipped=not self._engine.was_step_applied()
        )

    def reduce(self, sums: Mapping[str, Tensor], maxima: Mapping[str, Tensor]) -> dict[str, float]:
        """Return sums and maxima over the ranks. A collective; all ranks pass equal names in equal
        order.
        """
        return self._reduce(sums, torch.distributed.ReduceOp.SUM) | self._reduce(
            maxima, torch.distributed.ReduceOp.MAX
        )

    def _reduce(self, values: Mapping[str, Tensor], operation: Any) -> dict[str, float]:
        if not values:
            return {}
        stacked = torch.stack(list(values.values())).double()
        if self.world_size > 1:
            torch.distributed.all_reduce(stacked, op=operation)
        return dict(zip(values, stacked.tolist(), strict=True))

    def maximum(self, number: int) -> int:
        """Return the maximum over the ranks. A collective."""
        highest = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
        return int(highest)

    def union(self, numbers: set[int]) -> set[int]:
        """Return the union over the ranks. A collective."""
        parts: list[set[int]] = [set()] * self.world_size
        torch.distributed.all_gather_object(parts, numbers)
        return set().union(*parts)

    def parameters(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter with its Transformers name, as `dtype` or as it is; tied ones once.
        A weight with a LoRA adapter is merged with it.

        A collective under ZeRO-3: iterate to the end on every rank. A tensor is only valid until
        the next one is requested.
        """
        for whole in whole_parameters(self.model):
            with self._gathered(whole.parts):
                yield whole.name, whole.merged(dtype)

    def trained_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each trained parameter with its name in the model. A collective as `parameters`."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                with self._gathered([parameter]):
                    yield name, parameter.detach()

    def _gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        import deepspeed

        self.progress += 1
        return deepspeed.zero.GatheredParameters(parameters) if self.stage == 3 else nullcontext()

    def save(self, directory: Path, client_state: Mapping[str, Any]) -> None:
        """Write trained weights, optimizer and `client_state` to `directory`. A collective."""
        from deepspeed.runtime.zero.config import ZeroStageEnum

        # Early releases of Python 3.11 write the members of an Enum as calls of getattr, which
        # `load_data` refuses.
        copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))
        self._engine.save_checkpoint(
            str(directory),
            tag=_TAG,
            client_state=dict(client_state),
            exclude_frozen_parameters=self.has_frozen,
        )

    def load(self, directory: Path) -> dict[str, Any]:
        """Load what `save` wrote with the same number of ranks. A collective.

        Returns rank 0's `client_state`.

        Raises:
            UserError: `directory` has no checkpoint of this model and number of ranks, or the
                checkpoint holds objects other than data.
        """
        self.residency.require(Holds.ALL, "loading a checkpoint")
        path, client_state = self._engine.load_checkpoint(
            str(directory), tag=_TAG, load_module_strict=not self.has_frozen
        )
        if path is None:
            raise UserError(
                f"checkpoint {directory}: no DeepSpeed state for this model with {self.world_size} ranks in "
                "it"
            )
        return client_state

    def close(self) -> None:
        self._engine.destroy()


def load_data(path: str, map_location: Any = None) -> Any:
    """Load a file of a DeepSpeed checkpoint: tensors, plain values and a few DeepSpeed classes.

    Other objects are refused, because a pickle can run code. The manifest does not protect against
    an attacker, who can change the manifest too.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except UnpicklingError as error:
            raise UserError(
                f"checkpoint {path}: holds something other than data, which is not read because it could run "
                "code "
                f"({str(error).splitlines()[0]}): restore it from a copy you trust, or resume from an "
                "earlier checkpoint"
            ) from None


def _count(parameters: Iterable[nn.Parameter]) -> int:
    # ds_numel: of a parameter that is spread over the ranks
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)


def _leave_out_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Remove frozen parameters from a state dict. DeepSpeed's own option leaves the second name of
    a tied one.
    """
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(prefix + name, None)


def _optimizer(trained: list[nn.Parameter], settings: ModelSettings, stage: int) -> torch.optim.Optimizer:
    options = settings.optimizer
    common: dict[str, Any] = {
        "lr": options.lr,
        "betas": options.betas,
        "eps": options.eps,
        "weight_decay": options.weight_decay,
        "fused": True,
    }
    if stage == 0:
        return GuardedAdamW(trained, max_norm=options.grad_clip, **common)
    return torch.optim.AdamW(trained, **common)
