"""A reward function as a file: what has no import path (of a notebook, a script, a closure) is
pickled by value into the run directory, where the verifier processes of every node read it.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sppo_ray.config import PickledReward
from sppo_ray.errors import UserError
from sppo_ray.rewards.custom import verifier_of


def dump_function(function: Callable[..., Any], file: Path) -> dict[str, str]:
    """Write the function and return its settings. Raises UserError when it cannot be called as a
    reward function, or not pickled, e.g. because it holds an open file or a model.
    """
    import cloudpickle

    name = name_of(function)
    verifier_of(function, name)
    try:
        content = cloudpickle.dumps(function)
    except Exception as error:  # boundary: pickling calls code of the objects that the function holds
        raise UserError(
            f"reward={name}: cannot be sent to the processes that score ({type(error).__name__}: {error}): "
            "open files, locks and connections inside the function, or put it into a module"
        ) from None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return {"type": "pickled", "file": str(file), "sha256": hashlib.sha256(content).hexdigest()}


def load_function(settings: PickledReward) -> tuple[Callable[..., Any], str]:
    """Return the function and its name. Raises UserError when the file is missing, is not the one
    that `settings` name, or cannot be read here.
    """
    setting = f"reward.function.file {settings.file}"
    try:
        content = Path(settings.file).read_bytes()
    except OSError as error:
        raise UserError(
            f"{setting}: cannot be read ({error.strerror}): the run directory has to be on a file system "
            "that all nodes share"
        ) from None
    if hashlib.sha256(content).hexdigest() != settings.sha256:
        raise UserError(f"{setting}: is not the function that the run began with: restore the file")
    try:
        function = pickle.loads(content)
    except Exception as error:  # boundary: reading it runs code of the user's
        raise UserError(
            f"{setting}: cannot be loaded here ({type(error).__name__}: {error}): what the function imports "
            "must be installed on every node, with the same Python"
        ) from None
    return function, name_of(function)


def name_of(function: Any) -> str:
    """Return the name of a function for messages."""
    return getattr(function, "__qualname__", type(function).__qualname__)
