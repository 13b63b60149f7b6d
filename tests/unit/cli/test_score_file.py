"""`score FILE.jsonl`: one verdict a line, in order, and clear messages for bad files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from sppo_ray.cli.main import main
from sppo_ray.cli.score_file import read_requests, score_file
from sppo_ray.config import CustomReward, RewardSettings
from sppo_ray.errors import UserError

COMMANDS = RewardSettings(
    function=CustomReward(function="tests.unit.rewards.verifier_functions:by_command"),
    deadline_s=1.0,
    processes=2,
)


def write(folder: Path, *lines: str) -> str:
    path = folder / "responses.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def line(response: str, ground_truth: str, **more: object) -> str:
    return json.dumps({"response": response, "ground_truth": ground_truth, **more})


def test_verdicts_come_in_order_whatever_finishes_first(tmp_path: Path) -> None:
    with_extra = line("extra", "", extra={"credit": 0.5})
    path = write(tmp_path, line("sleep 0.3", "x"), line("b", "b"), line("raise", ""), "", with_extra)
    out = io.StringIO()
    assert score_file(path, COMMANDS, out) == (3, 1)
    rows = [json.loads(row) for row in out.getvalue().splitlines()]
    assert [row["reward"] for row in rows] == [0.0, 1.0, None, 0.5]
    assert rows[2]["reason"] == "error: KeyError: 'units' (verifier_functions.py, line 38)"
    assert all(set(row) == {"reward", "reason", "seconds", "answer"} for row in rows)
    assert rows[0]["seconds"] >= 0.3


def test_the_default_is_the_mathematical_verifier(tmp_path: Path) -> None:
    path = write(tmp_path, line(r"\boxed{\frac{2}{4}}", "0.5"), line(r"\boxed{1}", "0.5"), line("", "0.5"))
    out = io.StringIO()
    assert score_file(path, RewardSettings(), out) == (3, 0)
    assert [json.loads(row)["reason"] for row in out.getvalue().splitlines()] == [
        "correct",
        "wrong",
        "no_answer",
    ]


def test_the_command_fails_when_nothing_could_be_scored(tmp_path: Path, capsys) -> None:
    function = "{type: custom, function: 'tests.unit.rewards.verifier_functions:by_command'}"
    path = write(tmp_path, line("raise", ""), line("raise", ""))
    assert main(["score", path, f"--reward.function={function}"]) == 1
    assert "2 of 2 responses could not be scored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "holds no samples"),
        (("", "  "), "holds no samples"),
        ((line("a", "b"), "{nonsense"), r"responses.jsonl:2: not valid JSON .* column 2"),
        (("[1]",), "responses.jsonl:1: a line is an object .* found list"),
        (('{"response": "a"}',), "responses.jsonl:1: has no 'ground_truth'"),
        (('{"ground_truth": "a"}',), "responses.jsonl:1: has no 'response'"),
        (('{"response": "a", "ground_truth": 5}',), "ground_truth is a int, not a string"),
        ((line("a", "b", extra=[1]),), "extra is an object, found list"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_requests(write(tmp_path, *lines))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.jsonl: cannot be read"):
        score_file(str(tmp_path / "absent.jsonl"), RewardSettings(), io.StringIO())
