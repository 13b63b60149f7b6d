"""Rules of the source tree: import direction, light imports, docstrings, sizes."""

from __future__ import annotations

import ast
import os
import re
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

# A room may import itself and the rooms of the rows above its own.
LAYERS: list[set[str]] = [
    {"types", "errors", "settings", "plugins", "seeding", "redaction", "formatting", "intervals"}
    | {"file_digests"},
    {"algorithms"},
    {"config"},
    {"protocols", "data", "rewards", "models", "environments"},
    {"rundir", "rollout", "planning"},
    {"evaluation"},
    {"display", "tracking"},
    {"trainer"},
    {"launch"},
    {"replay"},
    {"api", "compare"},
    {"cli", "library", "__main__", "__init__"},
]
ACTORS_SEE = LAYERS[0] | {
    "protocols", "config", "algorithms", "data", "models", "rewards", "environments", "rollout"
}  # fmt: skip
SERVERS_SEE_NOT = {"trainer", "launch", "replay", "evaluation"}
HEAVY = (
    "torch",
    "ray",
    "vllm",
    "transformers",
    "deepspeed",
    "datasets",
    "pyarrow",
    "matplotlib",
    "sympy",
    "math_verify",
)


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
    return (
        node for node in ast.walk(tree_of(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )


def our_texts() -> Iterator[Path]:
    for folder, subfolders, files in os.walk(REPOSITORY):
        subfolders[:] = [
            name for name in subfolders if name not in GENERATED and (name[0] != "." or name == ".ci")
        ]
        # In a worktree .git is a file, which says where the repository is.
        yield from (
            Path(folder) / name for name in files if Path(name).suffix in TEXT_SUFFIXES and name != ".git"
        )


def layer_of(room: str) -> int:
    for number, rooms in enumerate(LAYERS):
        if room in rooms:
            return number
    raise AssertionError(f"sppo_ray/{room} is in no layer: give it a place in LAYERS")


# --------------------------------------------------------------------------------- who imports whom


def test_only_launch_knows_the_actors() -> None:
    knowing = {
        name_of(path) for path in SOURCES if any(name.split(".")[0] == "actors" for name in imports_of(path))
    }
    assert {name for name in knowing if name.startswith("sppo_ray/")} <= {"sppo_ray/launch/actor_factory.py"}


def test_imports_point_one_way() -> None:
    wrong = []
    for path in SOURCES:
        package, room = path.relative_to(REPOSITORY).with_suffix("").parts[:2]
        for imported, target in _rooms_imported(path):
            allowed = target in ACTORS_SEE if package == "actors" else layer_of(target) <= layer_of(room)
            if not allowed or (room in ("api", "compare") and target in SERVERS_SEE_NOT):
                wrong.append(f"{name_of(path)} imports {imported}")
    assert not wrong


def _rooms_imported(path: Path) -> Iterator[tuple[str, str]]:
    for imported in imports_of(path):
        head, _, rest = imported.partition(".")
        room = rest.split(".")[0]
        is_room = (REPOSITORY / "sppo_ray" / room).is_dir() or (
            REPOSITORY / "sppo_ray" / f"{room}.py"
        ).is_file()
        if head == "sppo_ray" and room and is_room:
            yield imported, room


def test_no_two_modules_import_each_other() -> None:
    """Neither when they load nor inside a function."""
    graph = {module: set(_ours_imported(path)) for module, path in MODULES.items()}
    while ready := [module for module, needs in graph.items() if not needs]:
        graph = {module: needs - set(ready) for module, needs in graph.items() if module not in ready}
    assert not graph, f"these import each other in a circle: {sorted(graph)}"


MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCES
}


def _ours_imported(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, inside functions too."""
    for name in imports_of(path):
        found = name if name in MODULES else name.rpartition(".")[0]
        if found in MODULES and MODULES[found] != path:
            yield found


def test_types_imports_nothing_of_ours() -> None:
    assert not [
        name
        for name in imports_of(REPOSITORY / "sppo_ray/types.py")
        if name.startswith(("sppo_ray", "actors"))
    ]


def test_the_trainer_knows_no_ray() -> None:
    trainer = [path for path in SOURCES if name_of(path).startswith("sppo_ray/trainer/")]
    imported = {name.split(".")[0] for path in trainer for name in imports_of(path)}
    assert not imported & {"ray", "vllm", "deepspeed"}, "workers are Protocols there: protocols.py"


@pytest.mark.parametrize(
    "module", ["sppo_ray.config", "sppo_ray.cli.main", "sppo_ray.cli.doctor", "sppo_ray.protocols"]
)
def test_light_modules_import_without_the_heavy_ones(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(("recipe", "code"), [("quickstart", 0), ("paper-7b", 2)])
def test_a_dry_run_works_where_the_heavy_packages_are_missing(recipe: str, code: int) -> None:
    missing = [*(name for name in HEAVY if name != "pyarrow"), "safetensors"]  # rows are Arrow tables
    program = (
        "import sys\n"
        f"for name in {missing!r}: sys.modules[name] = None\n"  # importing it now raises ImportError
        "from sppo_ray.cli.main import main\n"
        f"sys.exit(main(['train', {recipe!r}, '--dry-run', '--rollout.max_sequences=77']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert "max_sequences: 77" in done.stdout
    if code:  # the recipe names files for the user to give
        assert "error: data.train[0].path: data/dapo-math-17k.parquet: no such file" in done.stderr


# -------------------------------------------------------------------------------- how it is written


def test_every_module_says_what_it_is() -> None:
    # An empty __init__.py has nothing to say.
    assert not [
        name_of(p)
        for p in SOURCES
        if p.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree_of(p))
    ]


def test_public_functions_declare_what_they_return() -> None:
    public = [
        (path, function)
        for path in SOURCES
        for function in functions_of(path)
        if not function.name.startswith("_")
    ]
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


def test_files_and_functions_have_a_limited_length() -> None:
    lines = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    functions = {
        f"{name_of(p)}:{f.name}": (f.end_lineno or f.lineno) - f.lineno + 1
        for p in SOURCES
        for f in functions_of(p)
    }
    assert statistics.median(count for count in lines.values() if count) <= 200
    assert not {name: count for name, count in lines.items() if count > 530}
    assert not {name: count for name, count in functions.items() if count > 80}


def test_no_regular_expression_has_a_possessive_group() -> None:
    """Debian 12 has Python 3.11.2: it matches `(?:a|b)*+` and `(?>a|b)` wrong, `a*+` right."""
    possessive = re.compile(r"(?<!\\)\)(?:[*+?]|\{[0-9,]+\})\+|\(\?>")
    patterns = {name_of(p): possessive.findall(p.read_text(encoding="utf-8")) for p in SOURCES}
    assert not {name: found for name, found in patterns.items() if found}


def test_no_path_of_a_machine() -> None:
    # Spelled in pieces, so that this file does not contain what it looks for.
    machine_paths = ["/" + "work/", "/" + "root/"] + ([f"{Path.home()}/"] if Path.home() != Path("/") else [])
    texts = {name_of(path): path.read_text(encoding="utf-8", errors="replace") for path in our_texts()}
    assert {"Makefile", "pyproject.toml", ".ci/run"} <= texts.keys()
    assert not [name for name, text in texts.items() if any(path in text for path in machine_paths)]
