"""Local Transformers checkpoints for training: safetensors only, no code from the checkpoint, no dropout.

Dropout is switched off because the ratio pi / pi_old would measure its noise.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig

from sppo_ray.errors import UserError
from sppo_ray.models.tokenizers import why_not

Attention = Literal["auto", "sdpa", "flash_attention_2"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def read_config(directory: str | Path) -> PretrainedConfig:
    """The checkpoint's configuration. Raises UserError naming the directory."""
    path = Path(directory)
    if not path.is_dir():
        raise UserError(f"model {directory}: no such directory; give a Transformers checkpoint (`hf download` fetches one)")
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
    **config_changes: Any,
) -> tuple[Any, set[str]]:
    """(model, those of `may_lack` that the checkpoint lacks: parameters that were initialised instead).

    Args:
        auto_class: a Transformers AutoModel class.
        may_lack: names of parameters that need not be in the checkpoint.
        dtype: "float32" or "bfloat16".
        attention: "auto" is sdpa.
        config_changes: set on the configuration, e.g. num_labels.

    Raises:
        UserError: the directory holds no usable checkpoint, or one that lacks weights.
    """
    config = read_config(directory)
    config.update(_without_dropout(config) | config_changes)
    try:
        model, report = auto_class.from_pretrained(
            directory,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation="sdpa" if attention == "auto" else attention,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model {directory}: does not load: {why_not(error)}") from error
    missing = set(report["missing_keys"])
    if unexpected := missing.difference(may_lack):
        some = ", ".join(sorted(unexpected)[:5])
        raise UserError(f"model {directory}: weights of {type(model).__name__} are missing from it: {some}")
    return model, missing


def enable_gradient_checkpointing(model: Any) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()  # Transformers checkpoints only in training mode; there is no dropout that this could switch on


def _without_dropout(config: PretrainedConfig) -> dict[str, float]:
    entries = config.to_dict().items()
    return {key: 0.0 for key, value in entries if isinstance(value, float) and ("dropout" in key or key.endswith("_pdrop"))}


def _pickles(directory: Path) -> str:
    """Why a checkpoint of pickled weights is refused, and what to do."""
    found = sorted(p.name for ending in ("bin", "pt", "pth", "ckpt") for p in directory.glob(f"*.{ending}"))
    what = f"{', '.join(found[:3])} can run code when read and are refused" if found else "other weight formats are refused"
    return (
        f"{what}: get the model in safetensors, or convert it where you trust it: "
        "AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(OUT)"
    )
