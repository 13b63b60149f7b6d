"""Defaults that depend on the device of a role, in one table.

A role runs on "cuda" when it has a GPU share (`gpus_per_worker`, `gpus_per_rank`), else on "cpu".
The settings are resolved when they are parsed, so --dry-run and a run's config.yaml show values.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BeforeValidator, ValidationInfo

Device = Literal["cpu", "cuda"]

DEFAULTS: dict[str, dict[Device, Any]] = {
    "dtype": {"cpu": "float32", "cuda": "bfloat16"},
    "attention": {"cpu": "sdpa", "cuda": "flash_attention_2"},
    "enforce_eager": {"cpu": True, "cuda": False},
    "async_scheduling": {"cpu": False, "cuda": True},
    "kv_cache_gib": {"cpu": 1.0, "cuda": None},
}

BY_DEVICE: Any = None
"""Default of a setting in the table, whose type has `ByDevice`. The setting is declared after the
role's GPU share.
"""


def role_device(gpus: float) -> Device:
    """Return the device of a role whose processes have `gpus` GPUs each."""
    return "cuda" if gpus > 0 else "cpu"


def _resolve(given: Any, info: ValidationInfo) -> Any:
    if given is not None:
        return given
    device = _device(info)
    # the flash kernel reads half precision only
    if info.field_name == "attention" and info.data.get("dtype") == "float32":
        device = "cpu"
    return DEFAULTS[info.field_name or ""][device]


def _device(info: ValidationInfo) -> Device:
    shares = (info.data.get(name) for name in ("gpus_per_worker", "gpus_per_rank", "gpus_per_replica"))
    return role_device(next((share for share in shares if share is not None), 0.0))


ByDevice = BeforeValidator(_resolve)
