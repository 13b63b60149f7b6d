"""sppo-ray: Sequence-Level PPO (SPPO, arXiv 2604.08865) for reasoning models on Ray, vLLM and
DeepSpeed.

    import sppo_ray as sr
    run = sr.train("quickstart", loop={"steps": 20})

docs/library.md describes the names below. Each is imported when it is first used, so importing this
package imports neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "train": "sppo_ray.library.train",
    "evaluate": "sppo_ray.library.evaluate",
    "Run": "sppo_ray.library.run",
    "Evaluation": "sppo_ray.library.evaluate",
    "load_config": "sppo_ray.library.settings",
    "Client": "sppo_ray.api.client",
    "ExportedCritic": "sppo_ray.models.exported_critic",
    "UserError": "sppo_ray.errors",
    "StopTraining": "sppo_ray.launch.callbacks",
    "AlgorithmSpec": "sppo_ray.algorithms.base",
    "AlgorithmSettings": "sppo_ray.algorithms.base",
    "SourceSettings": "sppo_ray.config.data",
    "DataPlugin": "sppo_ray.data.sources.base",
    "rows_source": "sppo_ray.data.sources.table",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
