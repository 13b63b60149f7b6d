"""`sppo-ray compare RUN RUN`: results and differences of finished runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppo_ray.cli.main import main
from sppo_ray.compare.finished import differences
from sppo_ray.config.flat import flatten
from tests.unit.ended_run import ended_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("compare")
    better = ("--learner.optimizer.lr=1e-4", "--seed=2")
    return ended_run(folder / "a"), ended_run(folder / "b", *better, accuracies=(0.25, 0.75, 0.75))


def test_the_table_and_the_differences(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.png"
    assert main(["compare", *map(str, runs), "--targets", ".5", "--plot", str(plot)]) == 0
    results, settings, drawn = capsys.readouterr().out.split("\n\n")
    head, first, second = (line.split() for line in results.splitlines())
    assert head[-3:] == ["time", "to", "0.5"]
    assert first[:5] == ["a/run", "sppo", "1", "finished", "2"]
    assert first[5:10] == ["0.25", "0.50", "[0.40,", "0.60]", "0.50"]
    # From .25 to .75 in 10 s, so .5 is reached at 5 s and kept; a single evaluation may be luck.
    assert (first[-1], second[-1]) == ("never", "5.0s")
    assert [line.split() for line in settings.splitlines()] == [
        ["setting", "a/run", "b/run"],
        ["learner.optimizer.lr", "0.0005", "0.0001"],
    ]
    assert drawn.strip() == str(plot) and plot.read_bytes().startswith(b"\x89PNG")


def test_other_held_out_data_are_named(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ended_run(tmp_path, "--data.held_out.0.size=8")
    assert main(["compare", str(runs[0]), str(other)]) == 0
    assert "The held-out data differ: accuracies cannot be compared." in capsys.readouterr().out


def test_refusals(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, going_on = str(runs[0]), tmp_path / "going-on"
    going_on.mkdir()
    (going_on / "config.yaml").write_text("name: x\n")
    for words, message in {
        (run,): "is a run: give the directory of another run too, or a recipe",
        (run, run): "is given twice",
        (run, "quickstart"): "quickstart: is not a run directory: give one recipe, or two or more runs",
        (run, str(going_on)): "has no summary.json, so it has not ended",
        (run, str(runs[1]), "--seeds", "2"): "--seeds needs a recipe",
        ("quickstart", "--plot", "x.png"): "--plot draws finished runs",
    }.items():
        assert main(["compare", *words]) == 2
        assert message in capsys.readouterr().err


def test_differences_of_trees() -> None:
    first = flatten({"a": 1, "b": [{"c": True}], "d": None, "same": {}})
    second = flatten({"a": 1.5, "b": [{"c": False}, {"c": True}], "d": None, "same": {}})
    assert differences([first, second]) == {
        "a": ["1", "1.5"],
        "b.0.c": ["true", "false"],
        "b.1.c": ["-", "true"],
    }
