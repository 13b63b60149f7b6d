"""Confine the process that reads answers, and restrict its environment variables.

    reads     the Python installation, site-packages and this package; a custom function also the
              import path
    writes    nothing; no socket, no process, no signal to another; memory is bounded by the worker
    sees      the variables of `environment`: none of the run's keys, and none of the machine's

Landlock and seccomp enforce this (`sppo_ray.rewards.code.sandbox.confine`). If the kernel lacks
one, verifiers that evaluate nothing continue with the other and a warning; verifiers that may run
code of an answer are refused.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import sysconfig
from pathlib import Path

from sppo_ray.config import RewardFunction, UserReward
from sppo_ray.errors import UserError
from sppo_ray.rewards.base import Verifier
from sppo_ray.rewards.code.sandbox.confine import confine_fork, die_with_parent

_PACKAGE = str(Path(__file__).parents[2])
_KEPT = frozenset(
    {
        "CONDA_PREFIX", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "PATH", "PYTHONDONTWRITEBYTECODE",
        "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONUNBUFFERED", "PYTHONUTF8", "PYTHONWARNINGS", "TZ",
        "VIRTUAL_ENV"
    }
)  # fmt: skip
_KEPT_PREFIXES = ("LC_", "OMP_", "OPENBLAS_", "MKL_")
_KEYS_OF_THE_CLUSTER = ("RAY_AUTH_TOKEN", "SPPO_RAY_API_TOKENS", "SPPO_RAY_API_TOKEN")
"""Tokens of Ray and of the REST server; a process that reads model output must not have them."""
_OF_WALLS = (
    errno.EPERM,
    errno.EACCES,
    errno.ENOSYS,
    errno.EROFS,
    socket.EAI_AGAIN,
    socket.EAI_NONAME,
    socket.EAI_SYSTEM,
)
_HINT = (
    "; if it wants a file, the network or a process: functions are confined, reward.function.confined: false "
    "lifts that "
    "(docs/rewards.md)"
)


def environment(function: RewardFunction) -> dict[str, str]:
    """Return the environment of the verifier processes, with this process's import path, so that
    they find the same custom function.
    """
    return variables(is_unconfined=isinstance(function, UserReward) and not function.confined)


def variables(*, is_unconfined: bool) -> dict[str, str]:
    """Return the variables of a process that reads model output. An unconfined one has all except
    the cluster's keys.
    """
    if is_unconfined:
        kept = {name: value for name, value in os.environ.items() if name not in _KEYS_OF_THE_CLUSTER}
    else:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in _KEPT or name.startswith(_KEPT_PREFIXES)
        }
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def missing_walls(verifier: Verifier) -> str | None:
    """Test the confinement in a separate process; None when it is complete. Raises UserError when
    `verifier` requires the missing part.
    """
    if verifier.walls == "none":
        return None
    missing = _try_walls(verifier)
    if missing is not None and verifier.walls == "required":
        raise UserError(needs_walls(verifier.name, missing))
    return missing


def needs_walls(name: str, missing: str) -> str:
    """Return the remedy for a machine without full confinement."""
    return (
        f"reward.function {name} may run code of an answer and must be confined, but {missing}; a custom "
        "function that "
        "evaluates nothing may go without: reward.function.confined: false"
    )


def confine_child(verifier: Verifier, keeper: int) -> str | None:
    """Confine this process permanently, and let it die with its parent `keeper`. Returns the
    missing part.
    """
    if verifier.walls == "none":
        die_with_parent(keeper)
        return None
    return confine_fork(parent=keeper, readable=_readable(verifier), strict=False)


def unconfined_hint(verifier: Verifier, error: BaseException) -> str:
    """Return a hint for the error of a custom function that confinement probably caused."""
    if verifier.walls != "required":
        return ""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno in _OF_WALLS):
        cause = cause.__cause__ or cause.__context__
    return _HINT if cause is not None else ""


def _try_walls(verifier: Verifier) -> str | None:
    reading, writing = os.pipe()
    keeper, child = os.getpid(), os.fork()
    if child == 0:
        try:
            os.write(writing, (confine_child(verifier, keeper) or "").encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as told:
        missing = told.read()
    _, status = os.waitpid(child, 0)
    return missing or (f"a process cannot be confined here (wait status {status})" if status else None)


def _readable(verifier: Verifier) -> list[str]:
    paths = sysconfig.get_paths()
    readable = {paths["purelib"], paths["platlib"], _PACKAGE}
    for entry in sys.path:
        place = os.path.realpath(entry or ".")
        if os.path.basename(place) in ("site-packages", "dist-packages") or (
            verifier.reads_import_path and place != "/"
        ):
            readable.add(place)
    return sorted(readable)
