"""The GPU checks: sections in processes of their own, their ends, and the whole on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import gpu_smoke, report
from benchmarks.gpu.common import repeat_groups_if_needed
from benchmarks.gpu_smoke import ROOT, SECTIONS, Section, main

BLOCKED = ("deepspeed", "pydantic", "ray", "vllm", "xxhash")
HEAVY = {"torch", "transformers", "numpy", "psutil", *BLOCKED}


@pytest.fixture(autouse=True)
def _results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)


def fakes(*names: str, limit_s: float = 60) -> dict[str, Section]:
    return {name: Section(f"tests.unit.benchmarks.gpu_fakes:{name}", limit_s) for name in names}


def run(sections: dict[str, Section], *arguments: str) -> int:
    return main(["--device", "cpu", "--tiny", *arguments], sections)


def result() -> dict[str, Any]:
    return json.loads((report.RESULTS / "gpu_smoke-cpu-tiny.json").read_text())


def ends(found: dict[str, Any]) -> dict[str, str]:
    return {section["name"]: section["status"] for section in found["sections"]}


def reasons(found: dict[str, Any]) -> dict[str, str]:
    return {section["name"]: section["reason"] for section in found["sections"]}


def test_the_result_is_written_after_each_section(monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = [], gpu_smoke.write_result

    def keep(*arguments: Any) -> Path:
        path = write(*arguments)
        written.append(json.loads(path.read_text()))
        return path

    monkeypatch.setattr(gpu_smoke, "write_result", keep)
    assert run(fakes("good", "skips")) == 0
    assert [ends(found) for found in written] == [{"good": "done"}, {"good": "done", "skips": "skipped"}]
    assert written[0]["rows"] == [{"section": "good", "device": "cpu", "tiny": True}]
    assert written[0]["targets"] == [{"what": "a figure", "target": "<= 1", "figure": 0.5, "met": True}]
    assert reasons(written[1])["skips"] == "no such device"
    assert {"commit", "machine", "versions"} <= written[0].keys()
    assert written[0]["setup"] == {"device": "cpu", "tiny": True}


def test_each_end_is_named_and_the_others_go_on() -> None:
    failing = ("raises", "crashes", "ends_early", "needs_a_module_of_ours", "imports_what_names_no_package")
    assert run(fakes(*failing, "needs_a_package", "good")) == 1
    found = result()
    expected = dict.fromkeys(failing, "failed") | {"needs_a_package": "skipped", "good": "done"}
    assert ends(found) == expected
    why = reasons(found)
    assert why["raises"] == "ValueError: bad shape, at: the second part"
    assert why["crashes"] == "the process ended with signal SIGSEGV, at: the kernel\nillegal memory access"
    assert why["ends_early"] == "the process ended with exit code 0"
    missing = "no_such_package_of_anyone is not installed (tests/unit/benchmarks/gpu_fakes.py imports it)"
    assert why["needs_a_package"] == missing
    assert "sppo_ray.no_such_module" in why["needs_a_module_of_ours"]
    kept = [row["section"] for row in found["rows"]]
    assert kept == ["raises", "crashes", "ends_early", "good"]


def test_a_section_ends_at_its_deadline_with_all_that_it_started() -> None:
    assert run(fakes("hangs", limit_s=5) | fakes("good")) == 1
    found = result()
    assert ends(found) == {"hangs": "deadline", "good": "done"}
    assert reasons(found)["hangs"] == "stopped after 5 s, at: a collective"
    child = found["rows"][0]["child"]
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_missed_target_and_no_time_left() -> None:
    assert run(fakes("misses")) == 1
    assert run(fakes("good"), "--minutes", "0") == 0
    assert reasons(result()) == {"good": "no time is left: see --minutes and --only"}


def test_the_shapes_of_a_gpu_are_refused_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cpu"])
    assert "add --tiny" in capsys.readouterr().err


def test_it_starts_with_python_alone() -> None:
    """-I -S: without the packages of the environment."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import benchmarks.gpu_smoke as smoke\n"
    code += "from importlib import import_module\n"
    code += "places = [section.function.split(':') for section in smoke.SECTIONS.values()]\n"
    code += "print(all(callable(getattr(import_module(module), name)) for module, name in places))\n"
    code += f"print(sorted({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert found.stdout.split() == ["True", "[]"], found.stderr


def test_an_older_torch_repeats_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.attention import varlen

    def older(query: Any, key: Any, value: Any, *bounds: Any, scale: float | None = None) -> Any:
        return key, value

    monkeypatch.setattr(varlen, "varlen_attn", older)
    assert "lacks enable_gqa" in repeat_groups_if_needed()
    assert "lacks enable_gqa" in repeat_groups_if_needed()
    key, value = torch.arange(6.0).view(1, 2, 3), torch.ones(1, 2, 3)
    wide, _ = varlen.varlen_attn(torch.zeros(1, 4, 3), key, value, scale=1.0, enable_gqa=True)
    assert torch.equal(wide, key[:, [0, 0, 1, 1]])


def blocked(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """An environment whose Python does not find some packages."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def others(name, path=None, target=None):\n"
        f"    return None if name.split('.')[0] in {tuple(names)!r} else find(name, path, target)\n"
        "PathFinder.find_spec = staticmethod(others)\n"
    )
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_sections_run_on_a_cpu() -> None:
    assert main(["--device", "cpu", "--tiny", "--minutes", "12"]) == 0
    found = result()
    assert ends(found) == dict.fromkeys(SECTIONS, "done")
    assert all(target["met"] for target in found["targets"]) and len(found["targets"]) > 10
    assert {row["section"] for row in found["rows"]} == SECTIONS.keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_machine_with_torch_and_transformers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in blocked(tmp_path / "bare", BLOCKED).items():
        monkeypatch.setenv(name, value)
    assert main(["--device", "cpu", "--tiny", "--minutes", "12"]) == 0
    found = result()
    skipped = {name: reason for name, reason in reasons(found).items() if reason}
    assert set(skipped) == {"transports", "learner", "offload", "engine", "colocated"}
    assert skipped["learner"] == "ray is not installed (actors/learner.py imports it)"
    assert skipped["offload"] == "pydantic is not installed (sppo_ray/algorithms/base.py imports it)"
    assert any(row.get("skipped") == "xxhash is not installed" for row in found["rows"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sections_are_skipped_where_no_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--only", "digest", "colocated"]) == 0
    found = json.loads((report.RESULTS / "gpu_smoke.json").read_text())
    assert reasons(found)["digest"].startswith("no CUDA device (torch ")
