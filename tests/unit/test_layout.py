"""The rules of the source tree, executed: who imports whom, what stays light, and that every file says what it is."""

from __future__ import annotations

import ast
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted(p for package in ("sppo_ray", "actors") for p in (REPOSITORY / package).rglob("*.py"))
TEXT_SUFFIXES = {".py", ".yaml", ".yml", ".toml", ".md", ".sh", ".html", ".js", ".css", ".lock", ".txt", ""}
GENERATED = {"runs", "build", "dist", "node_modules", "__pycache__", "sppo_ray.egg-info"}

# A layer may import itself and those before it. `launch` is the composition root: it stands beside cli and sees everything.
LAYERS: list[set[str]] = [
    {"errors", "redaction", "types", "seeding", "settings"},
    {"config", "evaluation_config", "algorithms", "rewards", "tasks"},
    {"data", "models", "resources", "config_loading", "config_reference"},
    {"trainer"},
    {
        "launch",
        "api",
        "calibrate_command",
        "map_command",
        "replay_command",
        "cli",
        "cli_jobs",
        "compare",
        "eval_command",
        "eval_options",
        "doctor",
        "__main__",
        "__init__",
    },
]
HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "datasets", "pyarrow", "matplotlib", "sympy", "math_verify")


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, inside functions too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def our_texts() -> Iterator[Path]:
    for folder, subfolders, files in os.walk(REPOSITORY):
        subfolders[:] = [name for name in subfolders if name not in GENERATED and (name[0] != "." or name == ".ci")]
        # In a worktree .git is a file, which says where the repository is.
        yield from (Path(folder) / name for name in files if Path(name).suffix in TEXT_SUFFIXES and name != ".git")


def layer_of(room: str) -> int:
    for number, rooms in enumerate(LAYERS):
        if room in rooms:
            return number
    raise AssertionError(f"sppo_ray/{room} is in no layer: give it a place in LAYERS")


# ------------------------------------------------------------------------------------------------ who imports whom


def test_only_launch_knows_the_actors() -> None:
    knowing = {name_of(path) for path in SOURCES if any(name.split(".")[0] == "actors" for name in imports_of(path))}
    assert {name for name in knowing if name.startswith("sppo_ray/")} <= {"sppo_ray/launch/spawner.py"}


def test_lower_layers_do_not_know_higher_ones() -> None:
    wrong = []
    for path in SOURCES:
        package, room = path.relative_to(REPOSITORY).with_suffix("").parts[:2]
        for imported in imports_of(path):
            head, _, rest = imported.partition(".")
            target = rest.split(".")[0]
            is_room = (REPOSITORY / "sppo_ray" / target).is_dir() or (REPOSITORY / "sppo_ray" / f"{target}.py").is_file()
            if head != "sppo_ray" or not target or not is_room:
                continue
            # The actors stand below the drivers: whatever the trainer may see, they may.
            limit = layer_of("trainer") if package == "actors" else layer_of(room)
            if layer_of(target) > limit:
                wrong.append(f"{name_of(path)} imports {imported}")
    assert not wrong


def test_types_imports_nothing_of_ours() -> None:
    assert not [name for name in imports_of(REPOSITORY / "sppo_ray/types.py") if name.startswith(("sppo_ray", "actors"))]


def test_the_trainer_knows_no_ray() -> None:
    trainer = [path for path in SOURCES if name_of(path).startswith("sppo_ray/trainer/")]
    imported = {name.split(".")[0] for path in trainer for name in imports_of(path)}
    assert not imported & {"ray", "vllm", "deepspeed"}, "workers are Protocols there: trainer/interfaces.py"


@pytest.mark.parametrize("module", ["sppo_ray.config", "sppo_ray.cli", "sppo_ray.doctor", "sppo_ray.trainer.interfaces"])
def test_light_modules_import_without_the_heavy_ones(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_a_dry_run_works_where_the_heavy_packages_are_missing() -> None:
    code = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"  # importing it now raises ImportError
        "from sppo_ray.cli import main\n"
        "sys.exit(main(['train', 'paper-7b', '--dry-run', '--rollout.workers=2']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "workers: 2" in done.stdout


# -------------------------------------------------------------------------------------------------- how it is written


def test_every_module_says_what_it_is() -> None:
    # An empty __init__.py has nothing to say.
    assert not [name_of(p) for p in SOURCES if p.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree_of(p))]


def test_public_functions_declare_what_they_return() -> None:
    public = [(path, function) for path in SOURCES for function in functions_of(path) if not function.name.startswith("_")]
    assert not [f"{name_of(path)}:{f.lineno} {f.name}" for path, f in public if f.returns is None]


def test_broad_excepts_raise_again_or_give_their_reason_on_the_line() -> None:
    assert not [f"{name_of(path)}:{node.lineno}" for path in SOURCES for node in _silent_excepts(path)]


def _silent_excepts(path: Path) -> Iterator[ast.ExceptHandler]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
        raises_again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        if broad and not raises_again and "#" not in lines[node.lineno - 1]:
            yield node


def test_files_stay_rooms_and_functions_stay_readable() -> None:
    lines = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    functions = {f"{name_of(p)}:{f.name}": (f.end_lineno or f.lineno) - f.lineno + 1 for p in SOURCES for f in functions_of(p)}
    assert statistics.median(count for count in lines.values() if count) <= 200
    assert not {name: count for name, count in lines.items() if count > 450}
    assert not {name: count for name, count in functions.items() if count > 80}


def test_no_path_of_a_machine() -> None:
    # Spelled in pieces, so that this file does not contain what it looks for.
    machine_paths = ["/" + "work/", "/" + "root/"] + ([f"{Path.home()}/"] if Path.home() != Path("/") else [])
    texts = {name_of(path): path.read_text(encoding="utf-8", errors="replace") for path in our_texts()}
    assert {"Makefile", "pyproject.toml", ".ci/run"} <= texts.keys()
    assert not [name for name, text in texts.items() if any(path in text for path in machine_paths)]
