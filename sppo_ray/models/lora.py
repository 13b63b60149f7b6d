"""Low-rank adapters (LoRA, arXiv 2106.09685) in the linear layers of a model, by PEFT.

    y = W x + scale * B (A x)     W [out, in] frozen, A [rank, in] and B [out, rank] trained,
                                  scale = alpha / rank

B starts at zero, so a model starts as its base. PEFT replaces layers inside the model. The class of
the model, its forward pass and its attention stay, so rows are packed as without adapters. The base
is never written: a merged weight is a new tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sppo_ray.config import LoraSettings
from sppo_ray.errors import UserError
from sppo_ray.models.rounding import rounded

ADAPTER = "default"
"""PEFT's name of a model's only adapter."""
VALUE_HEAD = "score"
SHOWN = 12


@dataclass(frozen=True, slots=True)
class WholeParameter:
    """A parameter of the model as it is without adapters."""

    name: str
    weight: nn.Parameter
    adapter: tuple[nn.Parameter, nn.Parameter] | None  # A and B
    scale: float

    @property
    def parts(self) -> list[nn.Parameter]:
        return [self.weight, *(self.adapter or ())]

    @torch.no_grad()
    def merged(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return W + scale * B A, computed in float32 and rounded once, to `dtype` or the type of
        W (`rounding`); without an adapter W.
        """
        dtype = dtype or self.weight.dtype
        if self.adapter is None:
            return rounded(self.weight.detach(), dtype, self.name)
        a, b = self.adapter
        product = torch.addmm(self.weight.float(), b.float(), a.float(), alpha=self.scale)
        return rounded(product, dtype, self.name)


def add_adapters(model: Any, settings: LoraSettings, *, seed: int, directory: str | Path) -> None:
    """Freeze a Transformers model and add an adapter to each target layer; a value head stays
    trainable. A is drawn from `seed` and B is zero.

    Raises:
        UserError: a target is not a linear layer of the model in `directory`.
    """
    from peft import inject_adapter_in_model

    config = _peft_config(settings, _targets(model, settings, directory))
    with torch.random.fork_rng(devices=[]):  # PEFT draws on the CPU, whatever the device
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    head = getattr(model, VALUE_HEAD, None)
    if head is not None:
        head.requires_grad_(True)


def whole_parameters(model: nn.Module) -> Iterator[WholeParameter]:
    """Yield the parameters under the names that they have without adapters; tied ones once."""
    for name, weight in model.named_parameters():
        if _is_adapter(name):
            continue
        layer_name, wrapped, leaf = name.rpartition(".base_layer.")
        if not wrapped:
            yield WholeParameter(name, weight, None, 0.0)
        elif leaf != "weight":
            yield WholeParameter(f"{layer_name}.{leaf}", weight, None, 0.0)
        else:
            layer: Any = model.get_submodule(layer_name)
            pair = (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
            yield WholeParameter(f"{layer_name}.weight", weight, pair, layer.scaling[ADAPTER])


def save_adapter(
    directory: Path, trained: Mapping[str, Tensor], settings: LoraSettings, *, base: str
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, which `peft.PeftModel` loads
    onto the model `base`. `trained`: the trained tensors by their name in the model.
    """
    targets = {name.rpartition(".lora_A.")[0].rpartition(".")[2] for name in trained if ".lora_A." in name}
    is_critic = any(name.startswith(f"{VALUE_HEAD}.") for name in trained)
    config = _peft_config(settings, sorted(targets))
    config.base_model_name_or_path = base
    config.task_type = "SEQ_CLS" if is_critic else "CAUSAL_LM"
    config.modules_to_save = [VALUE_HEAD] if is_critic else None
    config.inference_mode = True
    config.save_pretrained(directory)
    tensors = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor for name, tensor in trained.items()
    }
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _targets(model: Any, settings: LoraSettings, directory: str | Path) -> list[str]:
    """Return the last parts of the names of the target layers."""
    body = model.base_model
    found = sorted({
        name.rpartition(".")[2] for name, layer in body.named_modules() if isinstance(layer, nn.Linear)
    })
    if settings.target_modules == "all-linear":
        return found
    if unknown := [name for name in settings.target_modules if name not in found]:
        raise UserError(
            f"model {directory}: lora.target_modules names {', '.join(unknown)}, and the linear layers of "
            f"{type(model).__name__} are {', '.join(found[:SHOWN])}: name some of these, or use all-linear"
        )
    return list(settings.target_modules)


def _peft_config(settings: LoraSettings, targets: list[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, bias="none", target_modules=targets
    )


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name
