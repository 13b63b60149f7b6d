"""Loads local Transformers checkpoints for training.

Only safetensors are read, and code from the checkpoint is never run. Dropout is off, because it
would add noise to the ratio pi / pi_old.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig
from transformers.initialization import no_init_weights

from sppo_ray.errors import UserError
from sppo_ray.models.finite import not_finite
from sppo_ray.models.packed import PACKED, PACKED_SDPA, packs_rows
from sppo_ray.models.tokenizers import why_not

Attention = Literal["auto", "sdpa", "flash_attention_2"]
"""Kernel of packed rows. "auto" and "flash_attention_2" are the same: torch's flash kernel in half
precision on a GPU, else SDPA.
"""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Sharding(Protocol):
    """Spreads the parameters of a model over ranks (ZeRO-3). All methods are collectives."""

    def constructing(self) -> AbstractContextManager[Any]:
        """A module that is constructed within it keeps only this rank's share."""

    def filling(self, parameter: torch.Tensor) -> AbstractContextManager[bool]:
        """`parameter` is whole within it; yields whether this rank writes to it."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: Any
    missing: set[str]
    """The names of `may_lack` that were missing; their parameters are initialised."""
    probe: Any
    """A model of the same kind that can be called: `model`, or a small one if that is sharded."""


def read_config(directory: str | Path) -> PretrainedConfig:
    """Read the checkpoint's configuration. Raises UserError naming the directory."""
    path = Path(directory)
    if not path.is_dir():
        raise UserError(
            f"model {directory}: no such directory; give a Transformers checkpoint (`hf download` fetches "
            "one)"
        )
    if not (path / "config.json").is_file():
        raise UserError(f"model {directory}: no config.json in it, so it is not a Transformers checkpoint")
    if not any(path.glob("*.safetensors")):
        raise UserError(f"model {directory}: no *.safetensors in it; {_pickles(path)}")
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model {directory}: its config.json cannot be used: {why_not(error)}") from error


def load_model(
    auto_class: Any,
    directory: str | Path,
    *,
    dtype: str,
    attention: Attention,
    may_lack: Collection[str] = (),
    device: str = "cpu",
    sharding: Sharding | None = None,
    **config_changes: Any,
) -> LoadedModel:
    """Load a model onto `device` and check there that it reads packed rows.

    Args:
        auto_class: a Transformers AutoModel class.
        may_lack: names of parameters that may be missing in the checkpoint.
        dtype: "float32" or "bfloat16".
        attention: the kernel of packed attention (`models.packed`).
        sharding: spreads the parameters over the ranks. Each one is read by itself, so that no rank
            holds the whole model. A checkpoint whose names are not the model's (Transformers
            converts it) is loaded whole on each rank.
        config_changes: changes of the configuration, e.g. num_labels.

    Raises:
        UserError: the directory has no usable checkpoint, or weights are missing.
    """
    config = read_config(directory)
    config.update(_without_dropout(config) | config_changes)
    options = {
        "dtype": DTYPES[dtype],
        "attn_implementation": PACKED_SDPA if attention == "sdpa" else PACKED,
    }
    with explained(directory, attention=attention, device=device):
        found = None
        if sharding is not None:
            found = _load_sharded(auto_class, directory, config, sharding, may_lack, device, options)
        found = found or _load_whole(auto_class, directory, config, device, options)
    if unexpected := found.missing.difference(may_lack):
        kind, some = type(found.model).__name__, ", ".join(sorted(unexpected)[:5])
        raise UserError(f"model {directory}: weights of {kind} are missing from it: {some}")
    if sharding is None:
        for name, parameter in found.model.named_parameters():
            require_finite(directory, name, parameter)
    with explained(directory, attention=attention, device=device):
        packs = packs_rows(found.probe)
        if packs and dtype != "float32":  # its own attention is compared in float32
            whole = options | {"dtype": torch.float32}
            packs = packs_rows(_small(auto_class, config, whole).to(device))
    if not packs:
        raise UserError(
            f"model {directory}: {type(found.model).__name__} does not read rows that lie end to end (its "
            "attention or its positions are of a kind of their own): use another model"
        )
    return found


@contextmanager
def explained(directory: str | Path, *, attention: Attention, device: str) -> Iterator[None]:
    """Turn what Transformers and the kernels raise into a UserError with a remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        flash = device == "cuda" and attention != "sdpa"
        remedy = "; if this is about attention, set attention to sdpa" if flash else ""
        raise UserError(f"model {directory}: does not load: {why_not(error)}{remedy}") from error


def _load_whole(
    auto_class: Any, directory: str | Path, config: PretrainedConfig, device: str, options: dict[str, Any]
) -> LoadedModel:
    model, report = auto_class.from_pretrained(
        directory,
        config=config,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    model.to(device)
    return LoadedModel(model, set(report["missing_keys"]), model)


def _load_sharded(
    auto_class: Any,
    directory: str | Path,
    config: PretrainedConfig,
    sharding: Sharding,
    may_lack: Collection[str],
    device: str,
    options: dict[str, Any],
) -> LoadedModel | None:
    """Load one parameter at a time. None: the names in the checkpoint are not the model's."""
    files = _files_of_tensors(Path(directory))
    with torch.device("meta"):
        skeleton = auto_class.from_config(config, trust_remote_code=False, **options)
    skeleton.tie_weights()
    missing = {name for name, _ in skeleton.named_parameters()} - files.keys()
    if missing.difference(may_lack):
        return None
    with sharding.constructing(), no_init_weights():
        model = auto_class.from_config(config, trust_remote_code=False, **options)
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            with sharding.filling(parameter) as writes:
                if writes and name in files:
                    tensor = _read_tensor(files[name], name)
                    require_finite(directory, name, tensor)
                    parameter.copy_(tensor)
                elif writes:
                    parameter.zero_()
        for name, buffer in model.named_buffers():
            if name in files:
                buffer.copy_(_read_tensor(files[name], name))
    return LoadedModel(model.eval(), missing, _small(auto_class, config, options).to(device))


def require_finite(directory: str | Path, name: str, tensor: torch.Tensor) -> None:
    """Raise UserError for a tensor with NaN or infinite values, e.g. of a run that diverged."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise not_finite(directory, name, int((~torch.isfinite(tensor)).sum()), tensor.numel())


def _files_of_tensors(directory: Path) -> dict[str, Path]:
    """Return the file of each tensor of a checkpoint."""
    files = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    return files


def _read_tensor(path: Path, name: str) -> torch.Tensor:
    # opened for each tensor, because the pages of an open file stay in memory
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def _small(auto_class: Any, config: PretrainedConfig, options: dict[str, Any]) -> Any:
    """Return a random model with one layer of each kind and a few words, for checks of the
    architecture.
    """
    small = deepcopy(config)
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ["any"]))
    changes: dict[str, Any] = {"num_hidden_layers": len(kinds), "vocab_size": 16, "pad_token_id": None}
    if getattr(config, "layer_types", None):
        changes["layer_types"] = kinds
    small.update(changes)
    with torch.random.fork_rng(devices=[]):  # loading draws no random numbers
        return auto_class.from_config(small, trust_remote_code=False, **options).eval()


def enable_gradient_checkpointing(model: Any) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Transformers checkpoints gradients only in training mode; dropout is off in any case
    model.train()


def _without_dropout(config: PretrainedConfig) -> dict[str, float]:
    entries = config.to_dict().items()
    return {
        key: 0.0
        for key, value in entries
        if isinstance(value, float) and ("dropout" in key or key.endswith("_pdrop"))
    }


def _pickles(directory: Path) -> str:
    """Return the error for a checkpoint with pickled weights, with the remedy."""
    found = sorted(p.name for ending in ("bin", "pt", "pth", "ckpt") for p in directory.glob(f"*.{ending}"))
    what = (
        f"{', '.join(found[:3])} can run code when read and are refused"
        if found
        else "other weight formats are refused"
    )
    return (
        f"{what}: get the model in safetensors, or convert it where you trust it: "
        "AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(OUT)"
    )
