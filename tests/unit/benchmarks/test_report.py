"""The file that every benchmark writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import report


def test_a_result_has_the_agreed_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    target = {"what": "speed", "target": 2.0, "figure": 3.0, "met": True}
    path = report.write_result("demo", [{"a": 1}], [target], {"seeds": [1, 2]})
    assert path == tmp_path / "results" / "demo.json"
    result = json.loads(path.read_text())
    assert list(result) == ["name", "commit", "machine", "versions", "rows", "targets", "seeds"]
    assert result["rows"] == [{"a": 1}] and result["targets"] == [target]
    assert (
        result["machine"]["cores"] >= 1
        and result["machine"]["memory_gib"] > 0
        and "python" in result["versions"]
    )
    with pytest.raises(ValueError, match="a target has the keys"):
        report.write_result("demo", [], [{"what": "speed"}])


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    report.print_table([{"name": "a", "value": 1 / 3}, {"name": "long", "other": "x"}])
    assert capsys.readouterr().out == "name  value   other\na     0.3333\nlong          x\n"
